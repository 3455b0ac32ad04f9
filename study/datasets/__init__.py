"""One file per source of images: reading, verifying, importing and drawing them."""
