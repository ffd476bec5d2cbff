package mcp

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"countersign/action"
	"countersign/audit"
)

// Which calls belong together: those that the client says, those of a session of
// MCP, and else those of one caller without a long gap. Each session is one record
// at its first call and one at its end, and no message makes one by itself.
func TestSessionsOnRecord(t *testing.T) {
	f := newFront(t)
	sessions := func() map[string]int {
		calls := map[string]int{}
		for _, r := range f.store.of(audit.ToolIntent) {
			calls[r.Principal.Subject+" "+r.Session]++
		}
		return calls
	}
	idle := f.initialize("bot", "2025-06-18") // never calls anything
	mine := f.initialize("bot", "2025-06-18")
	for range 3 {
		f.call("bot", "list_namespaces", `{}`, "")
		f.call("other", "list_namespaces", `{}`, "")
		f.call("bot", "list_namespaces", `{}`, `"countersign/session":"job-1"`)
		f.call("other", "list_namespaces", `{}`, `"countersign/session":"job-1"`)
		f.send("bot", `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"list_namespaces","arguments":{}}}`, headerSession, mine)
		f.send("bot", `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"list_namespaces","arguments":{},"_meta":{"countersign/session":"job-1"}}}`, headerSession, mine)
		f.modern("bot", "tools/list", "", "", "")
	}
	started := f.store.of(audit.SessionStarted)
	if len(started) != 5 {
		t.Errorf("%d sessions: %+v", len(started), started)
	}
	got := sessions()
	gap := ""
	for key, n := range got {
		if strings.HasPrefix(key, "bot gap:") {
			gap = strings.TrimPrefix(key, "bot ")
			delete(got, key)
			got["bot gap"] = n
		}
		if strings.HasPrefix(key, "other gap:") {
			delete(got, key)
			got["other gap"] = n
		}
	}
	// Two callers that name the same have each their own.
	var named []string
	for key, n := range maps.Clone(got) {
		if whose, hash, ok := strings.Cut(key, " agent:job-1@"); ok && len(hash) == 8 {
			named = append(named, hash)
			delete(got, key)
			got[whose+" job-1"] = n
		}
	}
	if len(named) != 2 || named[0] == named[1] {
		t.Errorf("sessions that were named: %q", named)
	}
	if want := fmt.Sprint(map[string]int{"bot gap": 3, "other gap": 3, "bot job-1": 6, "other job-1": 3, "bot " + mine: 3}); fmt.Sprint(got) != want {
		t.Errorf("got  %v\nwant %s", got, want)
	}
	if first := f.store.records[0].Type; started[0].Seq != 0 || first != audit.LogOpened || f.store.records[1].Type != audit.SessionStarted || started[0].Source.Agent != "rig 1" {
		t.Errorf("a call is on record before its session: %+v", f.store.records[:2])
	}

	// What is no name of a session, or would pass for another's, is none.
	for _, name := range []string{`""`, `7`, `"a b"`, `"` + strings.Repeat("x", 65) + `"`, `"a\nb"`, `null`, `{}`} {
		f.call("bot", "list_namespaces", `{}`, `"countersign/session":`+name)
	}
	if n := len(f.store.of(audit.SessionStarted)); n != 5 {
		t.Errorf("%d sessions", n)
	}

	// Each way to end.
	for _, id := range []string{mine, idle} {
		if r := f.do(http.MethodDelete, f.url, "bot", "", headerSession, id); r.status != 200 {
			t.Errorf("%+v", r)
		}
		for _, method := range []string{http.MethodPost, http.MethodDelete} {
			if r := f.do(method, f.url, "bot", `{"jsonrpc":"2.0","id":1,"method":"ping"}`, headerSession, id); r.status != 404 {
				t.Errorf("%s after the end: %+v", method, r)
			}
		}
	}
	f.stays.by[stayKey(action.Principal{Issuer: "https://idp", Subject: "bot", Client: "devin"}, "")].Value.(*stay).last = time.Now().Add(-2 * sessionIdle)
	f.stays.use.MoveToFront(f.stays.by[stayKey(action.Principal{Issuer: "https://idp", Subject: "bot", Client: "devin"}, "")])
	f.endSessions(time.Now().Add(-sessionIdle), "idle")
	f.call("bot", "list_namespaces", `{}`, "")
	stopped, stop := context.WithCancel(t.Context())
	stop()
	f.WatchSessions(stopped)
	reasons := map[string]int{}
	for _, r := range f.store.of(audit.SessionEnded) {
		reasons[r.End.Reason]++
		switch {
		case r.End.Reason == "deleted" && (r.Session != mine || r.End.Calls != 3),
			r.End.Reason == "idle" && (r.Session != gap || r.End.Calls != 10),
			r.Principal == nil, r.Outcome != audit.Success:
			t.Errorf("%+v, %+v", r, r.End)
		}
	}
	if fmt.Sprint(reasons) != "map[deleted:1 idle:1 stopped:4]" || len(f.stays.by)+f.stays.use.Len() != 0 {
		t.Errorf("%v; %d are left", reasons, f.stays.use.Len())
	}
	if n := len(f.store.of(audit.SessionStarted)); n != 6 {
		t.Errorf("%d sessions: after a gap there is another", n)
	}
}

// A client that takes a new session for each call makes the log longer, and not the
// memory.
func TestSessionsAreBounded(t *testing.T) {
	f := newFront(t)
	open := func(subject string, n int) {
		for i := range n {
			f.stay(caller{principal: action.Principal{Issuer: "https://idp", Subject: subject}}, "agent:"+strconv.Itoa(i))
		}
	}
	// One that opens too many ends its own, and nobody else's.
	open("first", 1)
	open("bot", maxOwnStays+3)
	if ended := f.store.of(audit.SessionEnded); len(ended) != 3 || ended[0].Session != "agent:0" || ended[0].Principal.Subject != "bot" || len(f.stays.by) != maxOwnStays+1 {
		t.Errorf("%d ended, %d open", len(ended), len(f.stays.by))
	}
	for n := range maxStays/maxOwnStays - 1 {
		open("bot-"+strconv.Itoa(n), maxOwnStays)
	}
	for i := range maxStays + 10 {
		f.deleted.add(strconv.Itoa(i))
		f.deleted.add(strconv.Itoa(i))
	}
	if n := len(f.deleted.ids); n != maxStays || f.deleted.has("9") || !f.deleted.has("10") {
		t.Errorf("%d deleted ids are kept", n)
	}
	ended := f.store.of(audit.SessionEnded)
	if len(ended) != 4 || ended[3].Principal.Subject != "first" || ended[3].End.Reason != "crowded_out" || len(f.stays.by) != maxStays || f.stays.use.Len() != maxStays || len(f.stays.of) != maxStays/maxOwnStays {
		t.Errorf("%d ended, %d open", len(ended), len(f.stays.by))
	}
	f.endSessions(time.Now().Add(time.Hour), "stopped")
	if len(f.stays.by)+f.stays.use.Len()+len(f.stays.of) != 0 {
		t.Errorf("%v are left", f.stays.of)
	}
}

// Whoever opens one session after the other makes mcp-go forget older ones, which
// keeps up to 64 KiB of each; they can be used on.
func TestOpenedSessionsAreBounded(t *testing.T) {
	f := newFront(t)
	first := f.initialize("bot", "2025-11-25")
	kept := f.initialize("bot", "2025-11-25")
	for range maxOpened - 1 {
		f.initialize("other", "2025-11-25")
	}
	const list = `{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"list_namespaces","arguments":{},"_meta":{"progressToken":1}}}`
	for _, id := range []string{first, kept} {
		if r := f.send("bot", list, headerSession, id); r.status != 200 || !strings.Contains(r.body, "END-OF-DATA") {
			t.Errorf("%+v", r)
		}
	}
	started := f.store.of(audit.SessionStarted)
	if len(started) != 2 || started[0].Source.Agent != "" || started[1].Source.Agent != "rig 1" {
		t.Errorf("%+v", started)
	}
	if n := len(f.opened.use); n != maxOpened {
		t.Errorf("%d are noted", n)
	}
}

// An id has one spelling: else one that its client deleted would live on in another.
func TestDeletedSessionIsRespelt(t *testing.T) {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	f := newFront(t)
	id := f.initialize("bot", "2025-11-25")
	if r := f.do(http.MethodDelete, f.url, "bot", "", headerSession, id); r.status != 200 {
		t.Fatalf("%+v", r)
	}
	for _, letter := range letters {
		if r := f.send("bot", `{"jsonrpc":"2.0","id":1,"method":"ping"}`, headerSession, id[:len(id)-1]+string(letter)); r.status != 404 {
			t.Errorf("%c: %+v", letter, r)
		}
	}
}
