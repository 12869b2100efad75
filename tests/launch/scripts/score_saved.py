"""Score a batch with saved models, in a process that knows nothing else: `score_saved.py request.pt answer.pt`.

The request is a dictionary with `folders`, and the `batch` that every model is called with.
"""

import sys

import torch
from transformers import AutoModelForSequenceClassification

from toolkit import AutoModelForMultiScaleReward

torch.set_num_threads(1)
request = torch.load(sys.argv[1])
answers = {}
for folder in request["folders"]:
    model = AutoModelForMultiScaleReward.from_pretrained(folder).eval()
    stock = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    batch = request["batch"]
    with torch.no_grad():
        output = model(**batch)
        without = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        logits = stock(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    answers[folder] = {
        "score": output.logits,
        "scale_scores": output.scale_scores,
        "gate": output.gate,
        "prefix_values": output.prefix_values,
        "score_by_marker": without.logits,
        "stock": logits,
    }
torch.save(answers, sys.argv[2])
