package cni

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/weft-cni/weft/pkg/cni/wire"
)

// Limits on the requests and connections that callers can open at once, several times a node's pods (the kubelet's
// default is 110). A request holds a goroutine, two file descriptors and, while it works in a pod's namespace, a
// thread.
const (
	// maxAttach bounds ADD and CHECK, which may wait for the API server and the switch.
	maxAttach = 512
	// maxDetach bounds the other commands separately, so that waiting ADDs never block a removal.
	maxDetach = 512
	// maxReading bounds the additional connections whose request is being read or rejected.
	maxReading = 128
)

// acceptPause and maxAcceptPause bound the backoff after an error of accept.
const (
	acceptPause    = 20 * time.Millisecond
	maxAcceptPause = time.Second
)

// limits are counting semaphores: each token in a channel is in use.
type limits struct{ attach, detach, connections chan struct{} }

func newLimits(attach, detach, reading int) limits {
	return limits{
		attach: make(chan struct{}, attach), detach: make(chan struct{}, detach),
		connections: make(chan struct{}, attach+detach+reading),
	}
}

// doLimited runs the request, or rejects it at once when too many are running.
func (s *Server) doLimited(ctx context.Context, req wire.Request, netns *os.File) (json.RawMessage, error) {
	limit := s.limits.detach
	if req.Command == "ADD" || req.Command == "CHECK" {
		limit = s.limits.attach
	}
	select {
	case limit <- struct{}{}:
	default:
		code := types.ErrTryAgainLater
		if req.Command == "STATUS" {
			code = errNotAvailable
		}
		return nil, errorf(code, "the Weft agent is busy with %d requests like this %s; try again", cap(limit), req.Command)
	}
	defer func() { <-limit }()
	return s.do(ctx, req, netns)
}

// unreadable is the response to a request that could not be read. The code distinguishes transient errors from invalid
// requests.
func unreadable(err error) *types.Error {
	code := types.ErrDecodingFailure
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, wire.ErrNoDescriptor) {
		code = types.ErrTryAgainLater
	}
	return errorf(code, "%v", err)
}
