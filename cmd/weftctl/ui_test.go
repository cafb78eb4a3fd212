package main

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/weft-cni/weft/internal/ui"
)

// TestUI: the command prints an address, at which the page shows the node's status until the command is interrupted.
func TestUI(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	out, in := io.Pipe()
	root := newRoot()
	root.SetOut(in)
	root.SetErr(io.Discard)
	root.SetArgs([]string{"--socket", serve(t, map[string]any{"/v1/status": exampleReport()}), "ui"})
	ended := make(chan error, 1)
	go func() { ended <- root.ExecuteContext(ctx) }()
	url, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.Get(strings.TrimSpace(url) + "api/status")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	var s ui.Status
	if err := json.NewDecoder(r.Body).Decode(&s); err != nil || len(s.Nodes) != 1 || s.Nodes[0].Node != "node1" {
		t.Errorf("%+v, %v", s, err)
	}
	interrupt()
	if err := <-ended; err != nil {
		t.Errorf("interrupted: %v", err)
	}
}
