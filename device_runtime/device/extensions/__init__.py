"""The features of a device, one a file: each is an `extension.Extension`."""
