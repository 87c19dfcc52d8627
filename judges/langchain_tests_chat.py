"""LangChain's standard tests of a chat model, on ChatOpenAI.

Run by pytest; JUDGED_URL and JUDGED_MODEL say whom to ask.
"""

from __future__ import annotations

import os
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestChat(ChatModelIntegrationTests):
    """All of it, tools and structured output included; pictures, sound and PDFs need larger models."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": os.environ["JUDGED_MODEL"],
            "base_url": os.environ["JUDGED_URL"],
            "api_key": "none",
            "temperature": 0,
            "seed": 1,
            "max_tokens": 24,
            "max_retries": 0,
            "stream_usage": True,
        }

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return os.environ["JUDGED_OTHER_MODEL"]
