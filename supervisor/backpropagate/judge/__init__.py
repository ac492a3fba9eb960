"""What is to be done: every decision of the supervisor, as pure functions and one pure state machine. No I/O, no clock."""
