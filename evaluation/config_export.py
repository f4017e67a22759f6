"""What an export says of itself. It changes the model card, so it is identity."""

from pydantic import Field

from contract.config import Frozen


class ExportConfig(Frozen):
    """The exported folder's name and words; weights and figures come from the artifacts."""

    name: str = Field(default="bessemer", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The model's name, as the title of its card."""
    description: str = Field(
        default="A small language model, trained from raw text by one pipeline that accounts for every document and token.", min_length=1
    )
    """The first sentence of the card: what the model is for."""
    license: str = Field(default="other", min_length=1)
    """Of the weights, as the card's `license`. The card counts the data's licences; which one the weights may bear is your decision."""
    prompts: int = Field(default=50, ge=1, le=50)
    """Prompts on which the export's greedy text is compared with transformers' before it is published."""
