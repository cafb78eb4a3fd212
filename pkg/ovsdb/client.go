// Package ovsdb configures this node's part of the Open vSwitch database: the bridge and its settings, the gateway and
// tunnel ports, pods' ports, the names of the flow tables.
//
// The database holds the state; the package has only libovsdb's monitored copy. Weft's rows are recognizable in the
// database: the bridge by its name, the ports that every node has by their names, a pod's port by its external_ids.
// Other rows are neither changed nor deleted.
//
// A Client may be used from any goroutine. It runs four goroutines: one keeps the connection up, one watches the
// connection, one commits transactions, one watches ovs-vswitchd. None of them calls back into the caller.
package ovsdb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/ovn-org/libovsdb/cache"
	dbmodel "github.com/ovn-org/libovsdb/model"
)

// ErrDisconnected reports that the connection to OVSDB was lost during the operation, which may have taken effect or
// not. All operations are idempotent, so retrying is safe.
var ErrDisconnected = errors.New("connection to OVSDB lost, try again")

// ErrClosed reports that the Client was closed.
var ErrClosed = errors.New("connection to OVSDB closed")

// redialInterval is the interval between attempts to reconnect.
const redialInterval = 100 * time.Millisecond

// Client is the connection to this node's OVSDB. It reconnects by itself.
type Client struct {
	endpoint string
	bridge   string
	log      *slog.Logger

	changes chan struct{}
	waiters waiters
	queue   chan *commit
	// maxBatch is defaultMaxBatch, except in the test that measures the effect of batching.
	maxBatch int

	served atomic.Bool // ovs-vswitchd serves the bridge

	changing atomic.Pointer[func(name string) bool] // see SetChanging

	// removing holds the UUIDs of rows that RemovePort deletes, until the monitor reports the deletion.
	removing sync.Map

	mu             sync.Mutex
	current        *session      // nil while there is no connection
	sessionChanged chan struct{} // closed and replaced when current changes

	stop   context.CancelFunc
	closed <-chan struct{} // closed by stop
	wg     sync.WaitGroup
}

// Connect connects to the OVSDB server at endpoint, such as unix:/run/openvswitch/db.sock, and returns when the copy of
// the database is complete. bridge is the name of Weft's bridge. ctx bounds only the connecting. The caller ends the
// Client with Close.
func Connect(ctx context.Context, endpoint, bridge string, log *slog.Logger) (*Client, error) {
	c := &Client{
		endpoint:       endpoint,
		bridge:         bridge,
		log:            log,
		changes:        make(chan struct{}, 1),
		queue:          make(chan *commit),
		maxBatch:       defaultMaxBatch,
		sessionChanged: make(chan struct{}),
	}
	socket, err := managementSocket(endpoint, bridge)
	if err != nil {
		return nil, err
	}
	s, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	c.current = s
	run, stop := context.WithCancel(context.Background())
	c.stop, c.closed = stop, run.Done()
	c.wg.Go(func() { c.keepConnected(run, s) })
	c.wg.Go(func() { c.commitLoop(run) })
	c.wg.Go(func() { c.watchSwitch(run, socket) })
	return c, nil
}

// Close ends the connection and the goroutines, and waits for them. Running operations fail.
func (c *Client) Close() {
	c.stop()
	c.wg.Wait()
}

// Changes receives, coalesced: after every change of a row that may need a repair, except those by AddPort and
// RemovePort; after the connection to OVSDB was lost or restored; and after ovs-vswitchd stopped or began to serve the
// bridge. The receiver calls EnsureBridge, which finds out whether there is anything to repair.
func (c *Client) Changes() <-chan struct{} { return c.changes }

// Healthy returns nil, ErrDisconnected without a connection to ovsdb-server, or another error while ovs-vswitchd does
// not serve the bridge. It does not block.
func (c *Client) Healthy() error {
	c.mu.Lock()
	connected := c.current != nil && !c.current.ended()
	c.mu.Unlock()
	if !connected {
		return ErrDisconnected
	}
	if !c.served.Load() {
		return fmt.Errorf("ovs-vswitchd does not serve bridge %s (is it running?)", c.bridge)
	}
	return nil
}

func (c *Client) dial(ctx context.Context) (*session, error) {
	handler := &cache.EventHandlerFuncs{
		AddFunc:    func(_ string, row dbmodel.Model) { c.onRowChange(nil, row) },
		UpdateFunc: func(_ string, old, row dbmodel.Model) { c.onRowChange(old, row) },
		DeleteFunc: func(_ string, row dbmodel.Model) { c.onRowChange(row, nil) },
	}
	return dial(ctx, c.endpoint, logr.FromSlogHandler(c.log.Handler()), handler)
}

// keepConnected replaces a session that ended, until ctx is done.
func (c *Client) keepConnected(ctx context.Context, s *session) {
	for {
		select {
		case <-ctx.Done():
			s.db.Close()
			<-s.done
			return
		case <-s.done:
		}
		c.log.Warn("connection to OVSDB lost; reconnecting", "endpoint", c.endpoint)
		c.setSession(nil)
		next, err := c.redial(ctx)
		if err != nil {
			return
		}
		s = next
		c.log.Info("reconnected to OVSDB", "endpoint", c.endpoint)
		c.setSession(s)
	}
}

// redial retries until it succeeds or ctx is done.
func (c *Client) redial(ctx context.Context) (*session, error) {
	pause := time.NewTicker(redialInterval)
	defer pause.Stop()
	for {
		attempt, cancel := context.WithTimeout(ctx, echoTimeout)
		s, err := c.dial(attempt)
		cancel()
		if err == nil {
			return s, nil
		}
		c.log.Debug("connect to OVSDB", "err", err)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-pause.C:
		}
	}
}

func (c *Client) setSession(s *session) {
	c.mu.Lock()
	c.current = s
	if s == nil {
		c.removing.Clear() // the lost session reports no more deletions
	}
	close(c.sessionChanged)
	c.sessionChanged = make(chan struct{})
	c.mu.Unlock()
	notify(c.changes)
}

// session returns the current session; while there is none, it waits.
func (c *Client) session(ctx context.Context) (*session, error) {
	for {
		c.mu.Lock()
		s, sessionChanged := c.current, c.sessionChanged
		c.mu.Unlock()
		if s != nil && !s.ended() {
			return s, nil
		}
		select {
		case <-sessionChanged:
		case <-c.closed:
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrDisconnected, ctx.Err())
		}
	}
}

// wait calls check after every change of the row with that key until it returns true or an error, or ctx or the session
// ends.
func (c *Client) wait(ctx context.Context, s *session, key string, check func() (bool, error)) error {
	woken, end := c.waiters.add(key)
	defer end()
	for {
		if ok, err := check(); ok || err != nil {
			return err
		}
		select {
		case <-woken:
		case <-s.done:
			return ErrDisconnected
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
