package programmer

import (
	"context"
	"time"
)

const (
	// paceBurst is how many bundles go out at once, pacePause how far apart they are afterwards, where each of them
	// costs all traffic of the node something. Changes that come meanwhile share a bundle.
	paceBurst = 8
	pacePause = 250 * time.Millisecond
)

// pacer is a token bucket of bundles. It belongs to the loop's goroutine.
type pacer struct {
	tokens float64
	at     time.Time // when tokens was right
}

func newPacer() pacer { return pacer{tokens: paceBurst, at: time.Now()} }

// pause is how long the next bundle has to wait.
func (p *pacer) pause() time.Duration {
	p.fill()
	return max(0, time.Duration((1-p.tokens)*float64(pacePause)))
}

// take notes a bundle.
func (p *pacer) take() {
	p.fill()
	p.tokens = max(0, p.tokens-1)
}

func (p *pacer) fill() {
	now := time.Now()
	p.tokens = min(paceBurst, p.tokens+float64(now.Sub(p.at))/float64(pacePause))
	p.at = now
}

// pace waits until a bundle may be sent. What is queued meanwhile goes with it.
func (l *Loop) pace(ctx context.Context) {
	if l.opt.Costly == nil || !l.opt.Costly() {
		return
	}
	pause := l.pacer.pause()
	if pause == 0 {
		return
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case answer := <-l.ask:
			answer <- l.compiler.Desired().Clone()
		}
	}
}
