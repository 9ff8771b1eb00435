"""Sample data of any form, as feeds of a model. Runs on the device, too: numpy, and Pillow where images come in."""
