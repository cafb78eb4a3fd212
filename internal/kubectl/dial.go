package kubectl

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// ConnectCommand is the command of the weftctl beside an agent that connects its own input and output to the agent.
const ConnectCommand = "connect"

// Error is what kubectl said when it could not connect.
type Error struct{ Text string }

func (e Error) Error() string { return e.Text }

// Dial connects to an agent's socket through kubectl exec. The connection ends its process when it is closed.
func (k Kubectl) Dial(pod string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		// The request's end closes the connection; the context of the dialing may end before.
		ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		c := &conn{pod: pod, cancel: cancel, done: make(chan struct{})}
		args := []string{"exec", "--stdin", "--namespace=" + k.Namespace, "--container=" + container, pod, "--", "weftctl",
			ConnectCommand}
		c.cmd = k.command(ctx, args...)
		c.cmd.WaitDelay = time.Second // a program that kubectl has started may hold its output open
		var err error
		if c.in, err = c.cmd.StdinPipe(); err == nil {
			c.out, err = c.cmd.StdoutPipe()
		}
		c.cmd.Stderr = &c.errs
		if err == nil {
			err = c.cmd.Start()
		}
		if err != nil {
			cancel()
			return nil, failure(args, err, "")
		}
		return c, nil
	}
}

// conn is a connection over the input and output of a process. One goroutine reads, another writes and closes.
type conn struct {
	pod    string
	cmd    *exec.Cmd
	cancel context.CancelFunc
	in     io.WriteCloser
	out    io.Reader
	errs   bytes.Buffer
	end    sync.Once
	done   chan struct{}
	got    bool
}

// Read returns what the process has written. When it ends without having written anything, the error is what it says.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.out.Read(b)
	c.got = c.got || n > 0
	if err != nil && !c.got {
		c.wait()
		if text := c.said(); text != "" {
			return n, Error{text}
		}
	}
	return n, err
}

// said is kubectl's message, or what it means.
func (c *conn) said() string {
	text := strings.TrimSpace(c.errs.String())
	if strings.Contains(text, fmt.Sprintf("unknown command %q", ConnectCommand)) {
		return Older(c.pod)
	}
	return text
}

// Older says that an agent's image is of a version from before ConnectCommand.
func Older(pod string) string {
	return fmt.Sprintf("the agent is older than this program: its image has no weftctl %s; use the weftctl in that image "+
		"(kubectl exec %s -- weftctl …)", ConnectCommand, pod)
}

func (c *conn) Write(b []byte) (int, error) {
	n, err := c.in.Write(b)
	if err != nil {
		c.wait()
		return n, Error{cmp.Or(c.said(), err.Error())}
	}
	return n, nil
}

func (c *conn) wait() {
	c.end.Do(func() {
		_ = c.cmd.Wait() // its message says more than its exit code
		close(c.done)
	})
	<-c.done
}

// Close ends the process.
func (c *conn) Close() error {
	err := c.in.Close()
	c.cancel()
	go c.wait() // a Read may still hold the output
	return err
}

type address string

func (address) Network() string  { return "kubectl" }
func (a address) String() string { return string(a) }

func (c *conn) LocalAddr() net.Addr  { return address("kubectl") }
func (c *conn) RemoteAddr() net.Addr { return address(c.pod) }

// Deadlines are not needed: the HTTP client closes a connection whose time is up.

func (c *conn) SetDeadline(time.Time) error      { return nil }
func (c *conn) SetReadDeadline(time.Time) error  { return nil }
func (c *conn) SetWriteDeadline(time.Time) error { return nil }
