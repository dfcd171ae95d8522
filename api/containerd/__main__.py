"""`python -m holdfast.api.containerd` is the command `containerd`."""

from .command import main

if __name__ == "__main__":
    main()
