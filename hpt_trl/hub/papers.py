"""The papers behind the methods, for the citations of a card."""

from dataclasses import dataclass


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


HPT = Paper(
    "lv2025unified",
    "Towards a Unified View of Large Language Model Post-Training",
    "Xingtai Lv and Yuxin Zuo and Youbang Sun and Hongyi Liu and Yuntian Wei and Zhekai Chen and Lixuan He and Xuekai "
    "Zhu and Kaiyan Zhang and Bingning Wang and Ning Ding and Bowen Zhou",
    2025,
    "2509.04419",
)
LUFFY = Paper(
    "yan2025luffy",
    "Learning to Reason under Off-Policy Guidance",
    "Jianhao Yan and Yafu Li and Zican Hu and Zhi Wang and Ganqu Cui and Xiaoye Qu and Yu Cheng and Yue Zhang",
    2025,
    "2504.14945",
)
SRFT = Paper(
    "fu2025srft",
    "SRFT: A Single-Stage Method with Supervised and Reinforcement Fine-Tuning for Reasoning",
    "Yuqian Fu and Tinghong Chen and Jiajun Chai and Xihuai Wang and Songjun Tu and Guojun Yin and Wei Lin and Qichao "
    "Zhang and Yuanheng Zhu and Dongbin Zhao",
    2025,
    "2506.19767",
)
CHORD = Paper(
    "zhang2025chord",
    "On-Policy RL Meets Off-Policy Experts: Harmonizing Supervised Fine-Tuning and Reinforcement Learning via Dynamic "
    "Weighting",
    "Wenhao Zhang and Yuexiang Xie and Yuchang Sun and Yanxi Chen and Guoyin Wang and Yaliang Li and Bolin Ding and "
    "Jingren Zhou",
    2025,
    "2508.11408",
)
RHO1 = Paper(
    "lin2024rho1",
    "Rho-1: Not All Tokens Are What You Need",
    "Zhenghao Lin and Zhibin Gou and Yeyun Gong and Xiao Liu and Yelong Shen and Ruochen Xu and Chen Lin and Yujiu "
    "Yang and Jian Jiao and Nan Duan and Weizhu Chen",
    2024,
    "2404.07965",
)
MTP = Paper(
    "gloeckle2024better",
    "Better & Faster Large Language Models via Multi-token Prediction",
    r"Fabian Gloeckle and Badr Youbi Idrissi and Baptiste Rozi{\`e}re and David Lopez-Paz and Gabriel Synnaeve",
    2024,
    "2404.19737",
)
GAE = Paper(
    "schulman2015gae",
    "High-Dimensional Continuous Control Using Generalized Advantage Estimation",
    "John Schulman and Philipp Moritz and Sergey Levine and Michael Jordan and Pieter Abbeel",
    2015,
    "1506.02438",
)
PPO = Paper(
    "schulman2017ppo",
    "Proximal Policy Optimization Algorithms",
    "John Schulman and Filip Wolski and Prafulla Dhariwal and Alec Radford and Oleg Klimov",
    2017,
    "1707.06347",
)
GRPO = Paper(
    "shao2024deepseekmath",
    "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
    "Zhihong Shao and Peiyi Wang and Qihao Zhu and Runxin Xu and Junxiao Song and Xiao Bi and Haowei Zhang and "
    "Mingchuan Zhang and Y. K. Li and Y. Wu and Daya Guo",
    2024,
    "2402.03300",
)
DPO = Paper(
    "rafailov2023direct",
    "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    "Rafael Rafailov and Archit Sharma and Eric Mitchell and Stefano Ermon and Christopher D. Manning and Chelsea Finn",
    2023,
    "2305.18290",
)
VRAG = Paper(
    "wang2025vragrl",
    "VRAG-RL: Empower Vision-Perception-Based RAG for Visually Rich Information Understanding via Iterative Reasoning "
    "with Reinforcement Learning",
    "Qiuchen Wang and Ruixue Ding and Yu Zeng and Zehui Chen and Lin Chen and Shihang Wang and Pengjun Xie and Fei "
    "Huang and Feng Zhao",
    2025,
    "2505.22019",
)
LORA = Paper(
    "hu2021lora",
    "LoRA: Low-Rank Adaptation of Large Language Models",
    "Edward J. Hu and Yelong Shen and Phillip Wallis and Zeyuan Allen-Zhu and Yuanzhi Li and Shean Wang and Lu Wang "
    "and Weizhu Chen",
    2021,
    "2106.09685",
)
QLORA = Paper(
    "dettmers2023qlora",
    "QLoRA: Efficient Finetuning of Quantized LLMs",
    "Tim Dettmers and Artidoro Pagnoni and Ari Holtzman and Luke Zettlemoyer",
    2023,
    "2305.14314",
)
