"""Turn a store's patches into batches of views: splits, draws of labels, order, loader, augmentation.

The path of a batch: `splits` divides the rows, `draws` chooses the labeled ones, `order` and `sampler` put each stream
in order, `loader` reads pixels ahead of the step, and `views` and `augment` make normalized views on the device.
"""
