"""python -m slm train|generate|evaluate|verify ...: the console script `slm`, which prepares signals for training."""

from slm.run.start import main

if __name__ == "__main__":
    main()
