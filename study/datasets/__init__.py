"""Sources of images, one file each: reading, verifying, importing and drawing."""
