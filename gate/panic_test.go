package gate

import (
	"log/slog"
	"strings"
	"testing"

	"countersign/approvals"
)

// lines are those of a log, as they come.
type lines chan string

func (l lines) Write(p []byte) (int, error) {
	l <- string(p)
	return len(p), nil
}

// What panics is found in the log by the operation's id, which the caller has,
// whether it is a read, a change, or what was approved and runs by itself.
func TestPanicHasItsOperation(t *testing.T) {
	for name, provoke := range map[string]func(r *rig) Result{
		"a read": func(r *rig) Result {
			return r.call("get_resource", `{"kind":"configmap","namespace":"shop","name":"a"}`)
		},
		"a change": func(r *rig) Result { return r.scale(5) },
		"what was approved": func(r *rig) Result {
			r.rules(askAll)
			waits := r.scale(5)
			r.approve(waits.Op)
			return waits
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, log := newRig(t, allowAll), make(lines, 100)
			r.Log = slog.New(slog.NewJSONHandler(log, nil))
			first := true
			r.cluster.sending = func() {
				if first {
					first = false
					panic("a bug")
				}
			}
			answer := provoke(r)
			if answer.Op == "" || answer.Status != Unknown && answer.Status != Pending {
				t.Fatalf("the caller is told %+v", answer)
			}
			if line := <-log; !strings.Contains(line, `"op":"`+answer.Op+`"`) || !strings.Contains(line, "panicked") || !strings.Contains(line, "a bug") {
				t.Errorf("the log says %s", line)
			}
			if name == "what was approved" {
				r.Stop(t.Context())
				r.start() // and the next start takes it up
				r.reaches(answer.Op, approvals.Reconciled)
			}
		})
	}
}
