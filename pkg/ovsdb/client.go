// Package ovsdb keeps this node's part of the Open vSwitch database right: the bridge and its settings, the gateway and
// tunnel ports, the pods' ports, the names of the flow tables.
//
// The database owns the state; this package remembers nothing of its own but libovsdb's monitored copy. What is ours in
// the database is recognised there: our bridge by its name, the ports every node has by their names, a pod's port by its
// external_ids. Nothing else is changed or deleted.
//
// A Client may be used from any goroutine. Four goroutines work for it: one keeps the connection up, one watches the
// connection, one commits the transactions, one watches ovs-vswitchd. None of them calls back into the caller.
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

// ErrDisconnected says that the connection to OVSDB was lost during the operation: it may have taken effect or not. All
// operations are idempotent, so it is safe to try again.
var ErrDisconnected = errors.New("connection to OVSDB lost, try again")

// ErrClosed says that the Client was closed.
var ErrClosed = errors.New("connection to OVSDB closed")

// redialInterval is the pause between two attempts to connect again.
const redialInterval = 100 * time.Millisecond

// Client is the connection to this node's OVSDB. It connects again by itself.
type Client struct {
	endpoint string
	bridge   string
	log      *slog.Logger

	changes chan struct{}
	waiters waiters
	queue   chan *commit
	// maxBatch is defaultMaxBatch, but for the test that measures what batching is worth.
	maxBatch int

	served atomic.Bool // ovs-vswitchd serves the bridge

	// removing holds the UUIDs of the rows that RemovePort removes, until we hear that they are gone.
	removing sync.Map

	mu      sync.Mutex
	current *session      // nil while there is no connection
	moved   chan struct{} // closed, and replaced, when current changes

	stop   context.CancelFunc
	closed <-chan struct{} // closed by stop
	wg     sync.WaitGroup
}

// Connect connects to the OVSDB server at endpoint, such as unix:/run/openvswitch/db.sock, and returns when the copy of
// the database is complete. bridge names the bridge that is ours. ctx bounds the connecting only; end with Close.
func Connect(ctx context.Context, endpoint, bridge string, log *slog.Logger) (*Client, error) {
	c := &Client{
		endpoint: endpoint,
		bridge:   bridge,
		log:      log,
		changes:  make(chan struct{}, 1),
		queue:    make(chan *commit),
		maxBatch: defaultMaxBatch,
		moved:    make(chan struct{}),
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

// Close ends the connection and the goroutines. Operations under way fail.
func (c *Client) Close() {
	c.stop()
	c.wg.Wait()
}

// Changes receives, coalesced, after every change of a row that may call for a repair, so not after what AddPort and
// RemovePort do themselves; when the connection to
// OVSDB was lost or is back; and when ovs-vswitchd has stopped serving the bridge or serves it again. The receiver calls
// EnsureBridge, which finds out whether anything has to be done.
func (c *Client) Changes() <-chan struct{} { return c.changes }

// Healthy tells what is wrong with OVS: ErrDisconnected without ovsdb-server, another error when ovs-vswitchd does not
// serve the bridge.
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
		AddFunc:    func(_ string, row dbmodel.Model) { c.changed(nil, row) },
		UpdateFunc: func(_ string, old, row dbmodel.Model) { c.changed(old, row) },
		DeleteFunc: func(_ string, row dbmodel.Model) { c.changed(row, nil) },
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
		c.log.Warn("connection to OVSDB lost, connecting again", "endpoint", c.endpoint)
		c.setSession(nil)
		next, err := c.redial(ctx)
		if err != nil {
			return
		}
		s = next
		c.log.Info("connected to OVSDB again", "endpoint", c.endpoint)
		c.setSession(s)
	}
}

// redial tries until it succeeds or ctx is done.
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
		c.removing.Clear() // nobody will tell us
	}
	close(c.moved)
	c.moved = make(chan struct{})
	c.mu.Unlock()
	notify(c.changes)
}

// session returns the session, waiting for one while there is none.
func (c *Client) session(ctx context.Context) (*session, error) {
	for {
		c.mu.Lock()
		s, moved := c.current, c.moved
		c.mu.Unlock()
		if s != nil && !s.ended() {
			return s, nil
		}
		select {
		case <-moved:
		case <-c.closed:
			return nil, ErrClosed
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrDisconnected, ctx.Err())
		}
	}
}

// wait calls check after every change of the row with that key until it says true, fails, or ctx or the session ends.
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
