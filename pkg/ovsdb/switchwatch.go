package ovsdb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// switchPoll is how often we look for the bridge's socket while it is not there.
const switchPoll = 200 * time.Millisecond

// managementSocket is the bridge's OpenFlow socket, which ovs-vswitchd makes beside that of ovsdb-server.
func managementSocket(endpoint, bridge string) (string, error) {
	path, ok := strings.CutPrefix(endpoint, "unix:")
	if !ok {
		return "", fmt.Errorf("OVSDB endpoint %q is not a Unix socket (unix:/run/openvswitch/db.sock)", endpoint)
	}
	return filepath.Join(filepath.Dir(path), bridge+".mgmt"), nil
}

// watchSwitch reports when ovs-vswitchd has lost the bridge's flows, because it restarted or made the bridge anew (or
// only changed its protocols: a false alarm). The database cannot tell: ovs-vswitchd finds its own values there when it
// comes back, and writes none. A connection to the bridge's management socket can, because it breaks.
func (c *Client) watchSwitch(ctx context.Context, socket string) {
	poll := time.NewTicker(switchPoll)
	defer poll.Stop()
	for {
		if conn, err := net.Dial("unix", socket); err == nil {
			c.holdSwitch(ctx, conn)
			if ctx.Err() != nil {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-poll.C:
		}
	}
}

// holdSwitch keeps the ports unblocked until the switch hangs up.
func (c *Client) holdSwitch(ctx context.Context, conn net.Conn) {
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	defer conn.Close()
	ports := &portConfig{
		conn: conn, log: c.log, gone: func(name string) bool { return c.hasNoPort(ctx, name) },
		changed: func() { notify(c.changes) },
	}
	if err := ports.begin(); err != nil {
		return
	}
	asking, stop := context.WithCancel(ctx)
	var asker sync.WaitGroup
	asker.Go(func() { ports.ask(asking) })
	defer asker.Wait()
	defer stop()
	c.log.Info("ovs-vswitchd serves the bridge", "bridge", c.bridge)
	c.served.Store(true)
	defer c.served.Store(false)
	notify(c.changes)
	err := ports.run()
	if ctx.Err() == nil {
		log := c.log.With("bridge", c.bridge)
		if !errors.Is(err, io.EOF) {
			log = log.With("err", err)
		}
		log.Warn("ovs-vswitchd hung up: it stopped, made the bridge anew or changed its protocols")
		notify(c.changes)
	}
}

// hasNoPort says that the database is there and has no port of this name.
func (c *Client) hasNoPort(ctx context.Context, name string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	s, err := c.session(ctx)
	if err != nil {
		return false
	}
	row, err := s.portByName(ctx, name)
	return err == nil && row == nil
}
