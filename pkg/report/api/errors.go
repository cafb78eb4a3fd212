package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"strconv"
	"strings"
	"syscall"

	"github.com/weft-cni/weft/pkg/report"
)

// noAnswer says why an agent could not be asked, and what to do. The cause comes first.
func (c Client) noAnswer(err error) error {
	var request *url.Error // it repeats the address
	if errors.As(err, &request) {
		err = request.Err
	}
	switch {
	case c.Dial != nil:
		return err
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("cannot open %s: permission denied; run as root", c.Socket)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no socket %s: weft-agent has not started on this machine, or has another "+
			"--operator-socket; from elsewhere, kubectl weft asks the nodes of a cluster", c.Socket)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("weft-agent does not run: no process listens on %s; its log says why it ended", c.Socket)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fmt.Errorf("weft-agent at %s closed the connection before it answered: it is stopping; ask again", c.Socket)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("weft-agent at %s did not answer in time: %w", c.Socket, err)
	}
	return fmt.Errorf("ask weft-agent at %s: %w", c.Socket, err)
}

// otherVersion is the error of a path that the agent does not have. Agents that say no version are those of version 1.
func otherVersion(version, path string) error {
	path, _, _ = strings.Cut(path, "?")
	number, err := strconv.Atoi(version)
	if err != nil {
		number = 1
	}
	which := "older"
	switch {
	case number > report.APIVersion:
		which = "newer"
	case number == report.APIVersion:
		return fmt.Errorf("the agent has no %s, although it says the same API version %d", path, number)
	}
	return fmt.Errorf("the agent is %s than this program: it answers API version %d, which has no %s, and this program "+
		"asks "+
		"in version %d; use the weftctl in the agent's image", which, number, path, report.APIVersion)
}
