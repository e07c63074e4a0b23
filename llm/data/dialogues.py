"""Conversations from Shakespeare's plays: one character speaks, another answers."""

import re

LONGEST = 8  # speeches in a conversation
SPEECH = re.compile(r"([^\n]{1,60}):\n(.+)", re.DOTALL)
Message = dict[str, str]  # role and content


def dialogues(play: str) -> list[list[Message]]:
    """The parts of a play in which two characters alternate, as messages of ``user`` and
    ``assistant``. ``play``: paragraphs of ``SPEAKER:`` and lines, as
    :func:`llm.data.assets.clean_play` writes them.
    """
    found: list[list[Message]] = []
    run: list[tuple[str, str]] = []  # (speaker, speech)

    def close() -> None:
        pairs = len(run) // 2 * 2  # every question needs its answer
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": run[i][1]} for i in range(pairs)]
        if messages:
            found.append(messages)
        run.clear()

    for paragraph in play.split("\n\n"):
        match = SPEECH.fullmatch(paragraph.strip())
        if match is None:  # the rest of a speech, which was divided
            run[-1:] = [(speaker, f"{text}\n{paragraph.strip()}") for speaker, text in run[-1:]]
            continue
        speaker, text = match.groups()
        if len(run) == LONGEST or (run and speaker == run[-1][0]):
            close()
        if len(run) > 1 and speaker != run[-2][0]:
            close()
        run.append((speaker, text))
    close()
    return found
