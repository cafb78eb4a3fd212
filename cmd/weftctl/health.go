package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/cli"
	"github.com/weft-cni/weft/pkg/report/api"
)

// checks are what `weftctl health` can be asked for.
var checks = map[string]func(api.Client, context.Context) error{"live": api.Client.Live, "ready": api.Client.Ready}

// healthTimeout is less than the DaemonSet's probes allow, so that the kubelet's event has the reason.
const healthTimeout = 8 * time.Second

func healthCommand(c *client) *cobra.Command {
	return &cobra.Command{
		Use:   "health live|ready",
		Short: "Fail when the agent must be restarted (live), or cannot attach pods (ready)",
		Long: "Prints ok, or fails with the reason. The DaemonSet's probes run this: the kubelet restarts the agent's container\n" +
			"when live fails, and shows the pod as not ready when ready does. A missing or stopped agent fails both.",
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"live", "ready"},
		Example:   "  weftctl health ready",
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), healthTimeout)
			defer cancel()
			err := checks[args[0]](c.local(), ctx)
			if refusal := (api.Refusal{}); errors.As(err, &refusal) {
				return cli.ExitError{Code: cli.Problem, Err: err}
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), "ok")
			return err
		},
	}
}
