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
        messages = [
            {"role": ("user", "assistant")[number % 2], "content": text}
            for number, (_, text) in enumerate(run)
        ]
        if len(messages) % 2:
            messages.pop()  # a question without an answer
        if messages:
            found.append(messages)
        run.clear()

    for paragraph in play.split("\n\n"):
        match = SPEECH.fullmatch(paragraph.strip())
        if match is None:  # the next paragraph of the last speech
            if run:
                speaker, text = run.pop()
                run.append((speaker, f"{text}\n{paragraph.strip()}"))
            continue
        speaker, text = match.groups()
        if len(run) == LONGEST or (run and speaker == run[-1][0]):
            close()
        if len(run) > 1 and speaker != run[-2][0]:
            close()
        run.append((speaker, text))
    close()
    return found
