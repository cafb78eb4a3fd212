package agent_test

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-cni/weft/pkg/agent"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/state"
)

// TestAuditIsNotPutOff: the switch is read back every minute, however often something is said meanwhile.
func TestAuditIsNotPutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sw := ofswitch.NewFake()
		loop := agent.NewLoop(agent.LoopOptions{Node: "n1", Switch: sw, Log: slog.New(slog.DiscardHandler)})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			if err := loop.Run(ctx); err != nil {
				t.Error(err)
			}
		}()
		for range 12 * 60 { // an hour
			time.Sleep(5 * time.Second)
			loop.Submit(state.SetNode{Node: node("n2", 2)}) // mostly what is known already
		}
		if n := sw.Dumps(); n < 59 || n > 65 {
			t.Errorf("the switch was read %d times in an hour, want once a minute", n)
		}
		stop()
		<-ended
	})
}
