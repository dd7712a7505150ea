"""`python -m whisperlib`: the command line."""

from whisperlib.cli import main

if __name__ == "__main__":
    main()
