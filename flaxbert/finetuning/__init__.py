"""Fine-tuning: tasks, their data and their metrics. What follows here is numpy; nothing imports jax.

From a folder of files to batches, and from what the model says of them to scores:

    task = find_task("sst2")                                         # tasks.py
    paths = find_files(folder, task)                                 # files.py: {"train": ..., "dev": ..., "test": ...}
    train = read_examples(paths["train"], task)                      # examples.py: learns the labels
    dev = read_examples(paths["dev"], task, labels=train.labels)
    features = encode(dev, task, tokenizer)                          # encoding.py: a list of Feature
    logits = [None] * len(features)
    for batch in batches(features, batch_size, shuffle=False):       # batching.py: dict[str, np.ndarray]
        place_logits(logits, features, batch, model(batch))          # predictions.py: in the order of the features
    found = predictions(dev, features, logits, task)                 # a label, number, list of tags or text each
    score(task, found, references(dev))                              # metrics.py: dict[str, float]

A batch has the keys that the encoder reads, `input_ids`, `segment_ids`, `sequence_ids` and `position_ids` [R, S] and
`cls_positions` [R, 1], with one row for each example; in multiple choice R = B x choices, the choices of one example
one after another. Beside them:

    labels           int32 [B]; float32 [B] in regression; int32 [B, S] in tagging; int32 [B, 2] (start, end) in qa
    label_weights    float32 [B], in tagging [B, S]: 0 for rows that fill the batch up and for tokens without a label
    feature_indices  int32 [B]: the place in the list of features, -1 for a row that fills up

Every batch has B rows and one of a few lengths, so that few shapes are compiled.
"""
