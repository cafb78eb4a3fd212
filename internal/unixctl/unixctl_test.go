package unixctl

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// serve answers one command with the result of reply, or not at all when reply is nil.
func serve(t *testing.T, reply func(method string, params []string) any) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "d.1.ctl")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		var request struct {
			ID     any      `json:"id"`
			Method string   `json:"method"`
			Params []string `json:"params"`
		}
		if json.NewDecoder(conn).Decode(&request) != nil || reply == nil {
			_, _ = conn.Read(make([]byte, 1)) // until the client closes the connection
			return
		}
		_ = json.NewEncoder(conn).Encode(reply(request.Method, request.Params))
	}()
	return socket
}

func TestCall(t *testing.T) {
	socket := serve(t, func(method string, params []string) any {
		return map[string]any{"id": 0, "error": nil, "result": method + "(" + strings.Join(params, ", ") + ")"}
	})
	if got, err := Call(t.Context(), socket, "ofproto/trace", "weft", "in_port=1"); err != nil ||
		got != "ofproto/trace(weft, in_port=1)" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestCallRefused(t *testing.T) {
	socket := serve(t, func(string, []string) any {
		return map[string]any{"id": 0, "error": `"nonsense" is not a valid command`, "result": nil}
	})
	_, err := Call(t.Context(), socket, "nonsense")
	if err == nil || !strings.Contains(err.Error(), `"nonsense" is not a valid command`) ||
		!strings.Contains(err.Error(), socket) {
		t.Errorf("%v: want what the daemon said, and its socket", err)
	}
}

func TestCallOfNobody(t *testing.T) {
	if _, err := Call(t.Context(), filepath.Join(t.TempDir(), "none.ctl"), "version"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v: want that the socket does not exist", err)
	}
}

// A call to a daemon that does not answer ends with its context.
func TestCallEnds(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Call(ctx, serve(t, nil), "version"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v: want %v", err, context.DeadlineExceeded)
	}
}

func TestSocket(t *testing.T) {
	dir := t.TempDir()
	if _, err := Socket(dir, "ovs-vswitchd"); err == nil || !strings.Contains(err.Error(), "--pidfile") {
		t.Errorf("without a pid file: %v; want what to do", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ovs-vswitchd.pid"), []byte("77\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := Socket(dir, "ovs-vswitchd"); err != nil || got != filepath.Join(dir, "ovs-vswitchd.77.ctl") {
		t.Errorf("%q, %v", got, err)
	}
}
