"""What the user wants: options, settings, presets, and the frozen RunSpec that is made of them."""
