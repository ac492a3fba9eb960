"""`python -m backpropagate` is the `backprop` command."""

from backpropagate.cli import main

if __name__ == "__main__":
    main()
