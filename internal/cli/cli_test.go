package cli

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func program() *cobra.Command {
	root := &cobra.Command{Use: "prog", SilenceErrors: true, SilenceUsage: true}
	group := &cobra.Command{Use: "group", Short: "Some commands"}
	group.AddCommand(&cobra.Command{Use: "up", Short: "Come up",
		RunE: func(*cobra.Command, []string) error { return nil }})
	root.AddCommand(group, VersionCommand())
	Strict(root)
	return root
}

func run(args ...string) (string, error) {
	var out bytes.Buffer
	root := program()
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(args)
	err := root.Execute()
	return out.String(), err
}

// TestUnknownCommands: what does not exist is an error at every level; what exists still works.
func TestUnknownCommands(t *testing.T) {
	for _, tc := range []struct{ args, want string }{
		{"bogus", `unknown command "bogus" for "prog"`},
		{"group upp", `unknown command "upp" for "prog group"; there are: up`},
		{"completion bogus", `invalid argument "bogus" for "prog completion"`},
		{"help bogus", `there is no command "bogus" to show the help of`},
		{"help group bogus", `unknown command "bogus" for "prog group"; there are: up`},
		{"group up --bogus", "unknown flag: --bogus"},
	} {
		if out, err := run(strings.Fields(tc.args)...); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q; printed %q", tc.args, err, tc.want, out)
		}
	}
	for args, want := range map[string]string{
		"":                "Available Commands",
		"group":           "Come up",
		"help":            "Available Commands",
		"help group":      "Come up",
		"help group up":   "Come up",
		"group --help":    "Come up",
		"completion bash": "bash completion V2",
		"completion zsh":  "zsh completion",
		"version":         "(commit ",
		"__complete help": "group",
	} {
		fields := strings.Fields(args)
		if strings.HasPrefix(args, "__complete") {
			fields = append(fields, "")
		}
		if out, err := run(fields...); err != nil || !strings.Contains(out, want) {
			t.Errorf("prog %s: %v, want %q; printed %q", args, err, want, out)
		}
	}
}

// TestFinish: an ExitError says the code; one without an error prints nothing.
func TestFinish(t *testing.T) {
	for _, tc := range []struct {
		err     error
		code    int
		printed string
	}{
		{nil, Well, ""},
		{errors.New("no"), CannotAsk, "prog: no\n"},
		{Found, Problem, ""},
		{fmt.Errorf("so: %w", ExitError{Code: 7, Err: errors.New("seven")}), 7, "prog: so: seven\n"},
	} {
		var out bytes.Buffer
		if code := Finish("prog", tc.err, CannotAsk, &out); code != tc.code || out.String() != tc.printed {
			t.Errorf("%v: %d %q, want %d %q", tc.err, code, out.String(), tc.code, tc.printed)
		}
	}
}
