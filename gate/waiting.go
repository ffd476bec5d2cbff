package gate

import (
	"math"
	"sync"
	"time"

	"countersign/approvals"
)

// waiting counts the questions of each principal, so that no agent can wear
// people out by asking. It is kept in memory and filled anew by each start.
type waiting struct {
	mu sync.Mutex
	by map[string]int    // principal -> questions
	of map[string]string // operation -> principal
}

// anyNumber is for questions that are not the agent's doing.
const anyNumber = math.MaxInt

// enter counts a question, if its principal has fewer than most.
func (w *waiting) enter(op approvals.Operation, most int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.by == nil {
		w.by, w.of = map[string]int{}, map[string]string{}
	}
	key := op.Principal.Key()
	if _, counted := w.of[op.ID]; counted {
		return true
	}
	if w.by[key] >= most {
		return false
	}
	w.by[key]++
	w.of[op.ID] = key
	return true
}

func (w *waiting) leave(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	key, counted := w.of[id]
	if !counted {
		return
	}
	delete(w.of, id)
	if w.by[key]--; w.by[key] == 0 {
		delete(w.by, key)
	}
}

// withdrawnFor is how long a withdrawn question still counts: else an agent
// could ask and withdraw without end, and each question is a message to people.
const withdrawnFor = time.Minute

// uncount takes what a commit has ended out of the number of questions. One that was
// rejected counts on for the cool-down. A question is counted before it is stored:
// afterwards it may have ended already.
func (g *Gate) uncount(op approvals.Operation) {
	after := time.Duration(0)
	switch op.State {
	case approvals.PendingApproval:
		return
	case approvals.Cancelled:
		after = withdrawnFor
	case approvals.Rejected:
		after = g.Cooldown
	}
	if after > 0 {
		id := op.ID
		time.AfterFunc(after, func() { g.waiting.leave(id) })
		return
	}
	g.waiting.leave(op.ID)
}
