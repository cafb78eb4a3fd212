package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/weft-cni/weft/pkg/report/api"
)

// client asks the agent and prints what it says.
type client struct {
	socket string
	output string
}

// check rejects an unknown -o.
func (c *client) check() error {
	if c.output != "table" && c.output != "json" {
		return fmt.Errorf("-o %s is not known; allowed: table, json", c.output)
	}
	return nil
}

// agent is the agent to ask.
func (c *client) agent() (api.Client, error) {
	return api.Client{Socket: c.socket}, c.check()
}

// print writes v as JSON, or as the table that show writes.
func (c *client) print(w io.Writer, v any, show func(io.Writer) error) error {
	if c.output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	return show(w)
}

// paint colours text on a terminal. It is used only for whole columns at the end of a line, so that it cannot upset
// the alignment.
func paint(w io.Writer, colour, text string) string {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" {
		return text
	}
	if info, err := f.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return text
	}
	// The console of Windows shows escapes as text unless a program switches them on; Windows Terminal needs no switch.
	if runtime.GOOS == "windows" && os.Getenv("WT_SESSION") == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

const (
	red   = "31"
	green = "32"
	faint = "2"
)
