"""The paper behind each method, for the card: what a run of the stage is to be cited with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Paper:
    """A paper.

    Attributes:
        key: of its BibTeX entry.
        arxiv: its number.
    """

    key: str
    title: str
    authors: str
    year: int
    arxiv: str

    @property
    def link(self) -> str:
        return f"[{self.title}](https://arxiv.org/abs/{self.arxiv})"

    @property
    def bibtex(self) -> str:
        title = self.title.replace("&", r"\&")
        return (
            f"@misc{{{self.key},\n"
            f"  title         = {{{{{title}}}}},\n"
            f"  author        = {{{self.authors}}},\n"
            f"  year          = {{{self.year}}},\n"
            f"  eprint        = {{{self.arxiv}}},\n"
            "  archivePrefix = {arXiv}\n"
            "}"
        )


_HPT = Paper(
    "lv2025unified",
    "Towards a Unified View of Large Language Model Post-Training",
    "Xingtai Lv and Yuxin Zuo and Youbang Sun and Hongyi Liu and Yuntian Wei and Zhekai Chen and Lixuan He and Xuekai "
    "Zhu and Kaiyan Zhang and Bingning Wang and Ning Ding and Bowen Zhou",
    2025,
    "2509.04419",
)
_RHO1 = Paper(
    "lin2024rho1",
    "Rho-1: Not All Tokens Are What You Need",
    "Zhenghao Lin and Zhibin Gou and Yeyun Gong and Xiao Liu and Yelong Shen and Ruochen Xu and Chen Lin and Yujiu "
    "Yang and Jian Jiao and Nan Duan and Weizhu Chen",
    2024,
    "2404.07965",
)
_MTP = Paper(
    "gloeckle2024better",
    "Better & Faster Large Language Models via Multi-token Prediction",
    r"Fabian Gloeckle and Badr Youbi Idrissi and Baptiste Rozi{\`e}re and David Lopez-Paz and Gabriel Synnaeve",
    2024,
    "2404.19737",
)
_PPO = Paper(
    "schulman2017ppo",
    "Proximal Policy Optimization Algorithms",
    "John Schulman and Filip Wolski and Prafulla Dhariwal and Alec Radford and Oleg Klimov",
    2017,
    "1707.06347",
)
_GRPO = Paper(
    "shao2024deepseekmath",
    "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
    "Zhihong Shao and Peiyi Wang and Qihao Zhu and Runxin Xu and Junxiao Song and Xiao Bi and Haowei Zhang and "
    "Mingchuan Zhang and Y. K. Li and Y. Wu and Daya Guo",
    2024,
    "2402.03300",
)
_DPO = Paper(
    "rafailov2023direct",
    "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    "Rafael Rafailov and Archit Sharma and Eric Mitchell and Stefano Ermon and Christopher D. Manning and Chelsea Finn",
    2023,
    "2305.18290",
)
_VRAG = Paper(
    "wang2025vragrl",
    "VRAG-RL: Empower Vision-Perception-Based RAG for Visually Rich Information Understanding via Iterative Reasoning "
    "with Reinforcement Learning",
    "Qiuchen Wang and Ruixue Ding and Yu Zeng and Zehui Chen and Lin Chen and Shihang Wang and Pengjun Xie and Fei "
    "Huang and Feng Zhao",
    2025,
    "2505.22019",
)
_LORA = Paper(
    "hu2021lora",
    "LoRA: Low-Rank Adaptation of Large Language Models",
    "Edward J. Hu and Yelong Shen and Phillip Wallis and Zeyuan Allen-Zhu and Yuanzhi Li and Shean Wang and Lu Wang "
    "and Weizhu Chen",
    2021,
    "2106.09685",
)
_QLORA = Paper(
    "dettmers2023qlora",
    "QLoRA: Efficient Finetuning of Quantized LLMs",
    "Tim Dettmers and Artidoro Pagnoni and Ari Holtzman and Luke Zettlemoyer",
    2023,
    "2305.14314",
)

# Stage -> what it is called, and its papers. A stage without a paper is next-token training or a model for others.
_STAGES: dict[str, tuple[str, tuple[Paper, ...]]] = {
    "pretrain": ("Pretraining: a new model, trained on the next token", ()),
    "sft": ("Supervised fine-tuning on demonstrations", ()),
    "ref_tuning": ("Fine-tuning of a reference model on selected solutions", (_RHO1,)),
    "rho1": ("Selective language modelling: the loss of selected tokens alone (Rho-1)", (_RHO1,)),
    "mtp": ("Multi-token prediction", (_MTP,)),
    "reward": ("A reward model, trained on comparisons of answers", ()),
    "critic": ("A value model, trained on right and wrong solutions", ()),
    "dpo": ("Direct Preference Optimization", (_DPO,)),
    "grpo": ("Group Relative Policy Optimization", (_GRPO,)),
    "ppo": ("Proximal Policy Optimization with a learnt critic", (_PPO,)),
    "hpt": (
        "Hybrid Post-Training: demonstrations where rollouts fail, reinforcement learning where they do not",
        (_HPT,),
    ),
}


def method_of(recipe: Mapping[str, Any]) -> tuple[str, tuple[Paper, ...]]:
    """What the method of a recipe is called, and the papers to cite, without one named twice."""
    stage = str(recipe["stage"])
    name, papers = _STAGES.get(stage, (f"`stage: {stage}`", ()))
    papers += (_VRAG,) if str(recipe.get("environment", "")).startswith("vrag") else ()
    if recipe.get("use_peft"):
        papers += (_QLORA, _LORA) if recipe.get("load_in_4bit") else (_LORA,)
    return name, papers
