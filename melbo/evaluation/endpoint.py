"""A model behind an endpoint that speaks OpenAI's protocol, asked one question at a time."""

import http.client
import json
import os
import time
import urllib.request
from collections.abc import Sequence

from melbo.errors import MelboError

_TIMEOUT = 60.0
_FAILURES = (
    OSError,
    http.client.HTTPException,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
)


class Endpoint:
    """A model to ask; ``OPENAI_API_KEY`` is sent if it is set.

    Args:
        url: The endpoint, up to ``/v1``.
        model: Name of the model there.
        pauses: Seconds to wait before each further attempt when it does not answer.
        timeout: Seconds that it may be silent.

    Attributes:
        model: Name of the model.

    Raises:
        MelboError: The URL is not one of http or https.
    """

    def __init__(
        self, url: str, model: str, pauses: Sequence[float] = (1, 4), timeout: float = _TIMEOUT
    ) -> None:
        self.model = model
        self._address = f"{url.rstrip('/')}/chat/completions"
        self._pauses, self._timeout = pauses, timeout
        if not self._address.startswith(("http://", "https://")):
            raise MelboError(f"got the endpoint {url!r}: expected http://… or https://…")

    def ask(self, question: str, max_tokens: int) -> str:
        """Content of the message that answers a question.

        Args:
            question: The question.
            max_tokens: Length of the answer at most.

        Raises:
            MelboError: There is no answer, after the last pause too.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._address, json.dumps(body).encode(), headers)
        left = list(self._pauses)
        while True:
            try:
                with urllib.request.urlopen(request, timeout=self._timeout) as response:
                    return str(json.load(response)["choices"][0]["message"]["content"])
            except _FAILURES as err:
                if not left:
                    raise MelboError(
                        f"no answer from {self._address} ({err}): "
                        "is it an OpenAI-compatible endpoint, and is OPENAI_API_KEY set?"
                    ) from err
                time.sleep(left.pop(0))
