"""python -m slm COMMAND ...: the console script `slm`, which prepares signals and streams."""

from slm.run.start import main

if __name__ == "__main__":
    main()
