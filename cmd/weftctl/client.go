package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// client asks the agent and prints what it says.
type client struct {
	socket string
	output string
}

// check refuses what -o does not know.
func (c *client) check() error {
	if c.output != "table" && c.output != "json" {
		return fmt.Errorf("-o %s is not known; allowed: table, json", c.output)
	}
	return nil
}

// get asks for a path and decodes the answer into v.
func (c *client) get(ctx context.Context, path string, v any) error {
	if err := c.check(); err != nil {
		return err
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", c.socket)
	}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path, http.NoBody)
	if err != nil {
		return err
	}
	response, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Do(request)
	if err != nil {
		return fmt.Errorf("the agent does not answer (does it run on this node, and are you root?): %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 1<<16)) // what could be read is the best message there is
		return fmt.Errorf("the agent says: %s", strings.TrimSpace(string(text)))
	}
	if err := json.NewDecoder(response.Body).Decode(v); err != nil {
		return fmt.Errorf("read the agent's answer: %w", err)
	}
	return nil
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
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

const (
	red   = "31"
	green = "32"
	faint = "2"
)
