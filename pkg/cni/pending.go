package cni

import (
	"context"
	"errors"
	"time"

	"github.com/weft-cni/weft/pkg/cni/wire"
	"github.com/weft-cni/weft/pkg/model"
)

// pendingPause is how long the server waits before it tries again what failed of the deletions that weft-cni recorded.
const pendingPause = 10 * time.Second

// deletePending removes what was deleted while no agent listened. It ends when nothing is left, or with the context:
// from when the server listens on, every DEL comes to it.
func (s *Server) deletePending(ctx context.Context) {
	for ctx.Err() == nil {
		list, err := wire.ReadPending(s.cfg.Socket)
		errs := []error{err}
		for _, p := range list {
			key := model.AttachmentKey{ContainerID: p.ContainerID, IfName: p.IfName}
			s.cfg.Log.Info("removing an attachment that was deleted while no agent ran", "attachment", key)
			errs = append(errs, s.del(context.WithoutCancel(ctx), key))
		}
		if err = errors.Join(errs...); err == nil {
			return
		}
		s.cfg.Log.Error("remove what was deleted while no agent ran", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(pendingPause):
		}
	}
}
