package main

import (
	"github.com/weft-cni/weft/internal/terminal"
	"github.com/weft-cni/weft/pkg/report/api"
)

// client is the agent to ask, and how its answers are printed.
type client struct {
	socket string
	output terminal.Format
}

// agent is the agent to ask.
func (c *client) agent() (api.Client, error) {
	return api.Client{Socket: c.socket}, c.output.Check()
}
