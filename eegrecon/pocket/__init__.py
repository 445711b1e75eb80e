"""The pocket set: real pictures, simulated EEG and small weights that let anyone run the whole chain."""
