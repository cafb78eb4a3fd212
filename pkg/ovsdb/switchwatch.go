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

// switchPoll is the interval of attempts to connect to the bridge's socket.
const switchPoll = 200 * time.Millisecond

// managementSocket is the bridge's OpenFlow socket, which ovs-vswitchd creates beside that of ovsdb-server.
func managementSocket(endpoint, bridge string) (string, error) {
	path, ok := strings.CutPrefix(endpoint, "unix:")
	if !ok {
		return "", fmt.Errorf("OVSDB endpoint %q is not a Unix socket (unix:/run/openvswitch/db.sock)", endpoint)
	}
	return filepath.Join(filepath.Dir(path), bridge+".mgmt"), nil
}

// watchSwitch reports when ovs-vswitchd has lost the bridge's flows because it restarted or recreated the bridge (or
// only changed its protocols, a false alarm). The database does not show it: a restarted ovs-vswitchd finds its own
// values there, and writes none. The connection to the bridge's management socket does, because it breaks.
func (c *Client) watchSwitch(ctx context.Context, socket string) {
	poll := time.NewTicker(switchPoll)
	defer poll.Stop()
	for {
		if conn, err := net.Dial("unix", socket); err == nil {
			c.superviseSwitch(ctx, conn)
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

// superviseSwitch keeps the ports unblocked until the switch closes the connection.
func (c *Client) superviseSwitch(ctx context.Context, conn net.Conn) {
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	defer conn.Close()
	ports := &portConfig{
		conn: conn, log: c.log, removed: func(name string) bool { return c.hasNoPort(ctx, name) },
		changing: c.isChanging, changed: func() { notify(c.changes) },
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
		log.Warn("ovs-vswitchd closed the connection: it stopped, recreated the bridge or changed its protocols")
		notify(c.changes)
	}
}

// hasNoPort reports that the database is connected and has no port of this name. It does not wait for a connection.
func (c *Client) hasNoPort(ctx context.Context, name string) bool {
	c.mu.Lock()
	s := c.current
	c.mu.Unlock()
	if s == nil || s.ended() {
		return false
	}
	row, err := s.portByName(ctx, name)
	return err == nil && row == nil
}

// SetChanging tells the Client how to learn that the port of a name is being added or removed: a blocked port is then
// not another program's doing. The function must not block and may be called from any goroutine. Without one, no port
// is.
func (c *Client) SetChanging(changing func(name string) bool) { c.changing.Store(&changing) }

func (c *Client) isChanging(name string) bool {
	changing := c.changing.Load()
	return changing != nil && (*changing)(name)
}
