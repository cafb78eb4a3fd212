// Package ofconn is one native OpenFlow connection to a bridge, for packets that wait: the switch sends them to the
// agent with the action controller, and the agent has them output. Flows and groups go through pkg/ofswitch; of flows,
// this connection writes only such as end by themselves.
//
// ovs-ofctl monitor prints packets as text without their bytes, and each packet-out through ovs-ofctl is a program
// (docs/findings.md has what each carries), so neither can hold DNS answers. OpenFlow 1.3 is enough here, and the
// messages are few, so that no library is needed.
package ofconn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/weft-cni/weft/pkg/openflow"
)

// Conn is a connection. Next belongs to one goroutine; the other methods may be called from anywhere.
type Conn struct {
	conn net.Conn
	read reader

	mu sync.Mutex // of writes
}

// writeTimeout bounds a write: a switch that takes nothing is not waited for.
const writeTimeout = 5 * time.Second

// handshakeTimeout bounds Dial.
const handshakeTimeout = 10 * time.Second

// Dial connects to a bridge's management socket and asks for the packets of controller actions with the id. When it
// returns, the switch has begun to send them: it has answered a barrier.
func Dial(ctx context.Context, socket string, id openflow.ControllerID) (*Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("connect to the switch: %w", err)
	}
	c := &Conn{conn: conn, read: reader{from: conn}}
	if err := c.handshake(id); err != nil {
		return nil, errors.Join(fmt.Errorf("connect to the switch at %s: %w", socket, err), conn.Close())
	}
	return c, nil
}

func (c *Conn) handshake(id openflow.ControllerID) error {
	if err := c.conn.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return err
	}
	if err := c.write(hello()); err != nil {
		return err
	}
	kind, _, err := c.read.next()
	if err != nil {
		return err
	}
	if kind != typeHello {
		return fmt.Errorf("message of type %d instead of a hello", kind)
	}
	for _, m := range [][]byte{setPacketInFormat(), setControllerID(id), setConfig(), barrier()} {
		if err := c.write(m); err != nil {
			return err
		}
	}
	for kind != typeBarrierReply {
		var body []byte
		if kind, body, err = c.read.next(); err != nil {
			return err
		}
		if kind == typeError {
			return rejected(body)
		}
	}
	return c.conn.SetDeadline(time.Time{})
}

// Next waits for the next packet. A RejectedError is about a message that was sent before, and the connection goes on;
// after every other error it is of no use. Close ends a Next that waits.
func (c *Conn) Next() (PacketIn, error) {
	for {
		kind, body, err := c.read.next()
		switch {
		case err != nil:
			return PacketIn{}, fmt.Errorf("read from the switch: %w", err)
		case kind == typeError:
			return PacketIn{}, rejected(body)
		case kind == typeEchoRequest:
			if err := c.write(message(typeEchoReply, body)); err != nil {
				return PacketIn{}, err
			}
		case kind == typeExperimenter:
			if p, ok := parsePacketIn(body); ok {
				return p, nil
			}
		}
	}
}

// Output has the switch send a frame out of a port.
func (c *Conn) Output(port uint32, frame []byte) error { return c.write(packetOut(port, frame)) }

// Lead adds a flow that matches every packet in a table, leads to a later one, and ends after some seconds unless it
// is added again. With no seconds it removes the flow.
func (c *Conn) Lead(table, to openflow.TableID, cookie uint64, priority, seconds uint16) error {
	return c.write(flowMod(table, to, cookie, priority, seconds))
}

// Close ends the connection.
func (c *Conn) Close() error { return c.conn.Close() }

func (c *Conn) write(m []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err == nil {
		_, err = c.conn.Write(m)
	}
	if err != nil {
		return fmt.Errorf("write to the switch: %w", err)
	}
	return nil
}

// reader reads messages.
type reader struct {
	from   io.Reader
	buffer []byte // the part of it that was read and not returned
	space  []byte
}

// next returns the next message's type and body, which is valid until the next call.
func (r *reader) next() (kind byte, body []byte, err error) {
	for {
		if len(r.buffer) >= headerSize {
			size := length(r.buffer)
			if size < headerSize {
				return 0, nil, fmt.Errorf("message of %d bytes", size)
			}
			if len(r.buffer) >= size {
				kind, body = r.buffer[1], r.buffer[headerSize:size]
				r.buffer = r.buffer[size:]
				return kind, body, nil
			}
		}
		if r.space == nil {
			r.space = make([]byte, 2*maxMessage)
		}
		n := copy(r.space, r.buffer)
		more, err := r.from.Read(r.space[n:])
		if r.buffer = r.space[:n+more]; more == 0 && err != nil {
			return 0, nil, err
		}
	}
}
