"""What stays: the files of an output folder as the parent writes and reads them, locks included."""
