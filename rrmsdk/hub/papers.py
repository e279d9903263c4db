"""Which paper a method comes from, for the pages of models that were made by it."""

from __future__ import annotations

PAPERS = {
    "rrm": "Vaishnavi, Eykholt, Rahmati. Transferring Adversarial Robustness Through Robust Representation Matching. "
    "USENIX Security 2022. arXiv:2202.09994",
    "mixacm": "Awais et al. MixACM: Mixup-Based Robustness Transfer via Distillation of Activated Channel Maps. "
    "NeurIPS 2021. arXiv:2111.05073",
    "akd": "Maroto, Ortiz-Jimenez, Frossard. On the benefits of knowledge distillation for adversarial robustness. "
    "2022. arXiv:2203.07159",
    "kd": "Hinton, Vinyals, Dean. Distilling the Knowledge in a Neural Network. 2015. arXiv:1503.02531",
    "ard": "Goldblum et al. Adversarially Robust Distillation. AAAI 2020. arXiv:1905.09747",
    "rslad": "Zi et al. Revisiting Adversarial Robustness Distillation: Robust Soft Labels Make Student Better. "
    "ICCV 2021. arXiv:2108.07969",
    "iad1": "Zhu et al. Reliable Adversarial Distillation with Unreliable Teachers. ICLR 2022. arXiv:2106.04928",
    "adaad": "Huang et al. Boosting Accuracy and Robustness of Student Models via Adaptive Adversarial Distillation. "
    "CVPR 2023",
    "igdm": "Lee, Cho, Kim. Indirect Gradient Matching for Adversarial Robust Distillation. ICLR 2025. "
    "arXiv:2312.03286",
    "igam": "Chan, Tay, Ong. What It Thinks Is Important Is Important: Robustness Transfers Through Input Gradients. "
    "CVPR 2020. arXiv:1912.05699",
    "rdt": "Ilyas et al. Adversarial Examples Are Not Bugs, They Are Features. NeurIPS 2019. arXiv:1905.02175",
    "pgd_at": "Madry et al. Towards Deep Learning Models Resistant to Adversarial Attacks. ICLR 2018. arXiv:1706.06083",
    "fast_at": "Wong, Rice, Kolter. Fast is better than free: Revisiting adversarial training. ICLR 2020. "
    "arXiv:2001.03994",
    "free_at": "Shafahi et al. Adversarial Training for Free! NeurIPS 2019. arXiv:1904.12843",
    "trades": "Zhang et al. Theoretically Principled Trade-off between Robustness and Accuracy. ICML 2019. "
    "arXiv:1901.08573",
    "mart": "Wang et al. Improving Adversarial Robustness Requires Revisiting Misclassified Examples. ICLR 2020",
    "awp": "Wu, Xia, Wang. Adversarial Weight Perturbation Helps Robust Generalization. NeurIPS 2020. arXiv:2004.05884",
    "autoattack": "Croce, Hein. Reliable evaluation of adversarial robustness with an ensemble of diverse "
    "parameter-free attacks. ICML 2020. arXiv:2003.01690",
}

PAPERS |= {"iad2": PAPERS["iad1"], "adaiad": PAPERS["adaad"]}


def cited(method: str, attack: str | None) -> list[str]:
    """What a model that `method` made and `attack` judged owes its thanks to."""
    return [PAPERS[name] for name in (method, attack) if name in PAPERS]
