package main

import (
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/spf13/cobra"

	"github.com/weft-cni/weft/internal/kubectl"
)

// connectCommand is the other end of kubectl.Dial.
func connectCommand(c *client) *cobra.Command {
	return &cobra.Command{
		Use:    kubectl.ConnectCommand,
		Short:  "Connect input and output to the agent of this machine; kubectl weft runs this in agents' containers",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			agent, err := c.local().Connect(cmd.Context())
			if err != nil {
				return err
			}
			defer agent.Close()
			go func() { // it ends with the process
				_, _ = io.Copy(agent, cmd.InOrStdin()) // what is lost shows at the other end
				if half, ok := agent.(interface{ CloseWrite() error }); ok {
					_ = half.CloseWrite()
				}
			}()
			if _, err = io.Copy(cmd.OutOrStdout(), agent); err != nil && !errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("copy the agent's answer: %w", err)
			}
			return nil
		},
	}
}
