"""Completion for PowerShell, which click has none for."""

from __future__ import annotations

from click.shell_completion import CompletionItem, ShellComplete, add_completion_class, split_arg_string

from backpropagate.doors.environ import environment

# PowerShell asks the block below for each Tab; a variable set to nothing is a variable that is not there.
_SCRIPT = """\
Register-ArgumentCompleter -Native -CommandName %(prog_name)s -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $env:%(complete_var)s = 'powershell_complete'
    $env:COMP_WORDS = $commandAst.ToString()
    $env:COMP_CWORD = $wordToComplete
    %(prog_name)s | ForEach-Object {
        $value, $help = $_ -split "`t", 2
        [System.Management.Automation.CompletionResult]::new($value, $value, 'ParameterValue', $(if ($help) { $help } else { $value }))
    }
    Remove-Item Env:%(complete_var)s, Env:COMP_WORDS, Env:COMP_CWORD -ErrorAction SilentlyContinue
}
"""


class PowerShellComplete(ShellComplete):
    """One line for each candidate: the value, a tab, its help."""

    name = "powershell"
    source_template = _SCRIPT

    def get_completion_args(self) -> tuple[list[str], str]:
        variables = environment()
        incomplete = variables.get("COMP_CWORD", "")
        words = split_arg_string(variables.get("COMP_WORDS", ""))[1:]
        if incomplete and words and words[-1] == incomplete:
            words.pop()
        return words, incomplete

    def format_completion(self, item: CompletionItem) -> str:
        return f"{item.value}\t{item.help or ''}"


def register() -> None:
    """Makes it known to click."""
    add_completion_class(PowerShellComplete)
