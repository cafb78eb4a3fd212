// Package cli is how Weft's programs behave as commands: mistakes in what was typed are errors, and the exit code says
// which kind of failure it was. It keeps no state.
package cli

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/version"
)

// Exit codes.
const (
	// Well: what was asked for was done, and it found no problem.
	Well = 0
	// Problem: the question was answered, and the answer is that something is wrong. For a command that asks nothing,
	// any failure.
	Problem = 1
	// CannotAsk: the question could not be asked or answered: a mistake in the command, or no answer.
	CannotAsk = 2
)

// ExitError ends a program with a code. A nil Err has nothing more to say: the output said it.
type ExitError struct {
	Code int
	Err  error
}

func (e ExitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Err.Error()
}

func (e ExitError) Unwrap() error { return e.Err }

// Found is the error of a command whose output has shown a problem.
var Found error = ExitError{Code: Problem}

// Finish writes what an error says and returns the exit code: an ExitError's own, or else the given one.
func Finish(program string, err error, otherwise int, to io.Writer) int {
	if err == nil {
		return Well
	}
	exit := ExitError{Code: otherwise, Err: err}
	errors.As(err, &exit)
	if exit.Err != nil {
		fmt.Fprintf(to, "%s: %v\n", program, err)
	}
	return exit.Code
}

// Strict makes unknown subcommands and unknown help topics errors. Cobra shows the help for them and exits with 0,
// which hides a mistake in a script. Call it when all subcommands are there.
func Strict(root *cobra.Command) {
	root.SetHelpCommand(helpCommand(root))
	root.AddCommand(completionCommand(root))
	rejectUnknown(root)
}

func rejectUnknown(cmd *cobra.Command) {
	if cmd.HasParent() && !cmd.Runnable() {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknown(cmd, args[0])
			}
			return cmd.Help()
		}
	}
	for _, sub := range cmd.Commands() {
		rejectUnknown(sub)
	}
}

// unknown is the error of a subcommand that does not exist, with those that the user may have meant.
func unknown(cmd *cobra.Command, name string) error {
	text := fmt.Sprintf("unknown command %q for %q", name, cmd.CommandPath())
	var known []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			known = append(known, sub.Name())
		}
	}
	if len(known) > 0 {
		text += "; there are: " + strings.Join(known, ", ")
	}
	return errors.New(text)
}

func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:               "help [COMMAND]",
		Short:             "Show the help of a command",
		ValidArgsFunction: completeCommands,
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := root.Find(args)
			if err != nil || about == nil {
				return fmt.Errorf("there is no command %q to show the help of", strings.Join(args, " "))
			}
			if len(rest) > 0 {
				return unknown(about, rest[0])
			}
			about.SetOut(cmd.OutOrStdout())
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

// completionCommand replaces cobra's own, which writes to the output that was set when it was made.
func completionCommand(root *cobra.Command) *cobra.Command {
	shells := map[string]func(io.Writer) error{
		"bash":       func(w io.Writer) error { return root.GenBashCompletionV2(w, true) },
		"zsh":        root.GenZshCompletion,
		"fish":       func(w io.Writer) error { return root.GenFishCompletion(w, true) },
		"powershell": root.GenPowerShellCompletionWithDesc,
	}
	return &cobra.Command{
		Use:       "completion bash|zsh|fish|powershell",
		Short:     "Write the completion script for a shell",
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: slices.Sorted(maps.Keys(shells)),
		Example:   "  source <(" + root.Name() + " completion bash)",
		RunE:      func(cmd *cobra.Command, args []string) error { return shells[args[0]](cmd.OutOrStdout()) },
	}
}

// completeCommands completes the path of a command.
func completeCommands(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	about, _, err := cmd.Root().Find(args)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, sub := range about.Commands() {
		if sub.IsAvailableCommand() && strings.HasPrefix(sub.Name(), begun) {
			names = append(names, sub.Name())
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// VersionCommand says what the program was built from.
func VersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the version and the commit of this program",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), version.Get())
			return err
		},
	}
}
