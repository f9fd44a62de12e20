"""A slow, literal transcription of the self-training loop as the released code runs it, from its description: two whole models, features computed anew each time,
prompts padded to the full context, dense graphs, one SciPy solve per class. Written to compare with, not to use."""
import copy
import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import cg


def class_texts(model, tokenizer, names, templates):
    rows = [F.normalize(F.normalize(model.encode_text(tokenizer([t.replace('{}', name) for t in templates])), dim=-1).mean(0), dim=-1) for name in names]
    return torch.stack(rows, dim=1)                                                   # (D, M)


def projection(weight):
    U = torch.svd(weight).U
    return U[:, 1:768] @ U[:, 1:768].T


def label_propagation(texts, images, P, k=20, alpha=.99):
    "Pseudo-labels of the images, and V's centroids"
    points = torch.cat([texts, images])
    v = F.normalize(points @ P, dim=-1)
    n, m = len(v), len(texts)
    A = (v @ v.T + 1) / 2 * (1 - torch.eye(n))
    value, index = torch.topk(A, k, dim=1)
    A = torch.zeros_like(A).scatter_(1, index, value)
    W = (A + A.T) / 2
    D = torch.diag(W.sum(1)**-.5)
    system = np.eye(n) - alpha * (D @ (W @ D)).numpy().astype(np.float64)
    Z = np.stack([cg(system, np.eye(n)[c], rtol=1e-6, atol=0, maxiter=20)[0] for c in range(m)], axis=1)
    label = torch.from_numpy(Z.argmax(1))
    centroids = torch.stack([F.normalize(points[label == c].mean(0), dim=0) for c in range(m)])
    return label[m:], centroids


def norm_params(modules): return [p for m in modules for n in m.modules() if isinstance(n, torch.nn.LayerNorm) for p in (n.weight, n.bias)]


def run(model, pixels, tokenizer, names, templates, epochs, recipe, seed=0, batch_size=64, lr=1e-3):
    "Per epoch: predictions before training it, and the two losses; after the last, the predictions once more"
    model_t, model_v = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    for o in (model_t, model_v): o.requires_grad_(False)
    params_t, params_v = norm_params([model_t.transformer, model_t.ln_final]), norm_params([model_v.visual])
    for p in params_t + params_v: p.requires_grad_(True)
    sgd = dict(lr=lr, momentum=.9, weight_decay=1e-4)
    opt_t, opt_v = torch.optim.SGD(params_t, **sgd), torch.optim.SGD(params_v, **sgd)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad(): weight_v = weight_t = first = class_texts(model_v, tokenizer, names, templates)
    predict_with = templates[:1] if recipe == 'official' else templates
    predictions, losses = [], []
    for epoch in range(epochs + 1):
        with torch.no_grad():
            image_t, image_v = (F.normalize(o.encode_image(pixels), dim=-1) for o in (model_t, model_v))
            logits_t, logits_v = 100 * image_t @ class_texts(model_t, tokenizer, names, predict_with), 100 * image_v @ weight_v
            predictions.append((logits_t + logits_v) / 2)
            if epoch == epochs: return predictions, losses
            label_t, _ = label_propagation(weight_t.T, image_t, projection(weight_t))
            label_v, centroids = label_propagation(first.T, image_v, projection(first))
            weight_v = centroids.T
        sums, steps = np.zeros(2), 0
        for b in torch.randperm(len(pixels), generator=generator).split(batch_size):
            agree = label_t[b] == label_v[b]
            if not agree.any(): continue
            logits_t = 100 * F.normalize(model_t.encode_image(pixels[b]), dim=-1) @ class_texts(model_t, tokenizer, names, templates[:1])
            logits_v = 100 * F.normalize(model_v.encode_image(pixels[b]), dim=-1) @ weight_v
            each_t, each_v = F.cross_entropy(logits_t, label_t[b], reduction='none'), F.cross_entropy(logits_v, label_v[b], reduction='none')
            loss_t = (each_t * agree).sum() / agree.sum()
            loss_v = (each_v * agree).mean() / agree.sum() if recipe == 'official' else (each_v * agree).sum() / agree.sum()
            for opt, loss in ((opt_t, loss_t), (opt_v, loss_v)): opt.zero_grad(); loss.backward(); opt.step()
            sums += loss_t.item(), loss_v.item(); steps += 1
        losses.append(sums / steps)
        with torch.no_grad(): weight_t = class_texts(model_t, tokenizer, names, templates)
