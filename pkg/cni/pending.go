package cni

import (
	"context"
	"errors"
	"time"

	"github.com/weft-cni/weft/pkg/cni/wire"
	"github.com/weft-cni/weft/pkg/model"
)

// pendingPause is the interval between attempts to finish recorded deletions.
const pendingPause = 10 * time.Second

// deletePending removes the attachments whose DEL came while no agent listened. It returns when none is left or the
// context ends. New DELs come to the listening server.
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
		s.cfg.Log.Error("remove attachments that were deleted while no agent ran; retrying", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(pendingPause):
		}
	}
}
