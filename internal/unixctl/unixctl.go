// Package unixctl sends commands to a running Open vSwitch daemon, as ovs-appctl(8) does, without starting a process
// for each.
//
// It has no state: each call uses its own connection, from any goroutine.
package unixctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// patience bounds a call without an earlier deadline: a daemon answers from its main loop, which may be busy.
const patience = 10 * time.Second

// Socket is the control socket of a daemon with its pid file and sockets in runDir, named as ovs-appctl expects:
// DAEMON.PID.ctl. The path changes with each start of the daemon.
func Socket(runDir, daemon string) (string, error) {
	data, err := os.ReadFile(filepath.Join(runDir, daemon+".pid"))
	if err != nil {
		return "", fmt.Errorf("find the control socket of %s (does it run with --pidfile?): %w", daemon, err)
	}
	return filepath.Join(runDir, daemon+"."+strings.TrimSpace(string(data))+".ctl"), nil
}

// Call sends one command to the daemon behind a socket and returns its output. It blocks until the reply, the end of
// ctx, or for 10 seconds. The protocol is JSON-RPC 1.0 (ovs-vswitchd(8), RUNTIME MANAGEMENT COMMANDS).
func Call(ctx context.Context, socket, command string, args ...string) (string, error) {
	result, err := call(ctx, socket, command, args)
	if err != nil {
		return "", fmt.Errorf("%s through %s: %w", command, socket, err)
	}
	return result, nil
}

func call(ctx context.Context, socket, command string, args []string) (result string, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // unblocks reads and writes
	defer stop()
	if args == nil {
		args = []string{}
	}
	if err := json.NewEncoder(conn).Encode(map[string]any{"id": 0, "method": command, "params": args}); err != nil {
		return "", errors.Join(err, ctx.Err())
	}
	var reply struct {
		Result string `json:"result"`
		Error  any    `json:"error"`
	}
	if err := json.NewDecoder(conn).Decode(&reply); err != nil {
		return "", errors.Join(err, ctx.Err())
	}
	if reply.Error != nil {
		return "", fmt.Errorf("%v", reply.Error)
	}
	return reply.Result, nil
}
