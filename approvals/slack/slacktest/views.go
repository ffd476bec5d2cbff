package slacktest

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

func (s *Server) viewsOpen(a args) answer {
	v, wrong := s.readView(a, nil)
	if wrong != nil {
		return wrong
	}
	t, bad := s.exchange(a["trigger_id"])
	if bad != "" {
		return failed(bad)
	}
	s.show(t.user, v, nil)
	return answer{"ok": true, "view": s.viewJSON(v, nil)}
}

func (s *Server) viewsPush(a args) answer {
	v, wrong := s.readView(a, nil)
	if wrong != nil {
		return wrong
	}
	t, bad := s.exchange(a["trigger_id"])
	if bad != "" {
		return failed(bad)
	}
	stack := s.stacks[t.user]
	switch {
	case len(stack) == 0:
		return failed("not_found")
	case len(stack) == 3:
		return failed("push_limit_reached")
	}
	s.show(t.user, v, stack)
	return answer{"ok": true, "view": s.viewJSON(v, nil)}
}

// show puts a view in front of a person, upon those of the stack. The lock is held.
func (s *Server) show(user string, v *View, stack []*View) {
	v.ID, v.User = s.id("V"), user
	v.Hash = s.hash()
	v.root = v.ID
	if len(stack) > 0 {
		v.root, v.previous = stack[0].ID, stack[len(stack)-1].ID
	}
	s.stacks[user] = append(slices.Clone(stack), v)
	s.wake()
}

func (s *Server) hash() string {
	return fmt.Sprintf("%d.%s", time.Now().Unix(), randomHex(4))
}

func (s *Server) viewsUpdate(a args) answer {
	for _, stack := range s.stacks {
		for i, old := range stack {
			if old.ID != a["view_id"] && (a["external_id"] == "" || old.ExternalID != a["external_id"]) {
				continue
			}
			if a["hash"] != "" && a["hash"] != old.Hash {
				return failed("hash_conflict")
			}
			v, wrong := s.readView(a, old)
			if wrong != nil {
				return wrong
			}
			s.replace(stack, i, v)
			return answer{"ok": true, "view": s.viewJSON(v, nil)}
		}
	}
	return failed("not_found")
}

// replace puts v in the place of a view that is open. The lock is held.
func (s *Server) replace(stack []*View, i int, v *View) {
	old := stack[i]
	v.ID, v.User, v.Hash, v.root, v.previous = old.ID, old.User, s.hash(), old.root, old.previous
	stack[i] = v
	s.wake()
}

// readView reads and checks the view of a call. Its external id may be that of
// the view it replaces.
func (s *Server) readView(a args, replaced *View) (*View, answer) {
	raw := a["view"]
	if raw == "" {
		return nil, rejected("invalid_arguments", []string{"missing required field: view"})
	}
	v, wrong := parseView(raw)
	if wrong != nil {
		return nil, wrong
	}
	for _, stack := range s.stacks {
		for _, other := range stack {
			if v.ExternalID != "" && v.ExternalID == other.ExternalID && other != replaced {
				return nil, failed("duplicate_external_id")
			}
		}
	}
	v.Blocks = s.rendered(v.Blocks)
	return v, nil
}

// viewJSON is a view as Slack shows it to the app. The lock is held.
func (s *Server) viewJSON(v *View, state map[string]any) answer {
	if state == nil {
		state = map[string]any{}
	}
	text := func(t string) any {
		if t == "" {
			return nil
		}
		return answer{"type": "plain_text", "text": t, "emoji": true}
	}
	var previous any
	if v.previous != "" {
		previous = v.previous
	}
	return answer{"id": v.ID, "team_id": s.TeamID, "type": "modal", "blocks": v.Blocks, "private_metadata": v.PrivateMetadata,
		"callback_id": v.CallbackID, "state": answer{"values": state}, "hash": v.Hash, "title": text(v.Title),
		"clear_on_close": v.clearOnClose, "notify_on_close": v.notifyOnClose, "close": text(v.Close), "submit": text(v.Submit),
		"previous_view_id": previous, "root_view_id": v.root, "app_id": s.AppID, "external_id": v.ExternalID,
		"app_installed_team_id": s.TeamID, "bot_id": s.BotID}
}

// trigger is the permission to open a view for a person who has just acted.
type trigger struct {
	user   string
	issued time.Time
	used   bool
}

const (
	triggerLife  = 3 * time.Second
	triggersKept = time.Minute
)

// trigger issues a trigger id. The lock is held.
func (s *Server) trigger(user string) string {
	for id, t := range s.triggers {
		if time.Since(t.issued) > triggersKept {
			delete(s.triggers, id)
		}
	}
	s.serial++
	id := fmt.Sprintf("%d.%d.%s", s.serial, time.Now().UnixMicro(), randomHex(16))
	s.triggers[id] = &trigger{user: user, issued: time.Now()}
	return id
}

func (s *Server) exchange(id string) (*trigger, string) {
	t := s.triggers[id]
	switch {
	case t == nil:
		return nil, "invalid_trigger_id"
	case t.used:
		return nil, "exchanged_trigger_id"
	case time.Since(t.issued) > triggerLife:
		return nil, "expired_trigger_id"
	}
	t.used = true
	return t, ""
}

// parseView reads and checks a modal.
func parseView(raw string) (*View, answer) {
	if len(raw) > maxViewBytes {
		return nil, failed("view_too_large")
	}
	var m Block
	if json.Unmarshal([]byte(raw), &m) != nil {
		return nil, rejected("invalid_arguments", []string{"must be a JSON object [json-pointer:/view]"})
	}
	c := &checker{surface: surfaceModal}
	c.fields("/view", m, "type", "title", "blocks", "close", "submit", "private_metadata", "callback_id",
		"clear_on_close", "notify_on_close", "external_id", "submit_disabled")
	if m["type"] != "modal" {
		c.bad("/view/type", "unsupported type: %v", m["type"])
	}
	v := &View{}
	for field, to := range map[string]*string{"title": &v.Title, "submit": &v.Submit, "close": &v.Close} {
		if t, ok := m[field]; ok || field == "title" {
			c.text("/view/"+field, t, 24, false)
			object, _ := t.(Block)
			*to, _ = object["text"].(string)
		}
	}
	for field, to := range map[string]*string{
		"private_metadata": &v.PrivateMetadata, "callback_id": &v.CallbackID, "external_id": &v.ExternalID,
	} {
		most := maxID
		if field == "private_metadata" {
			most = maxText
		}
		if s, ok := m[field]; ok {
			c.string("/view/"+field, s, 0, most)
			*to, _ = s.(string)
		}
	}
	v.clearOnClose, _ = m["clear_on_close"].(bool)
	v.notifyOnClose, _ = m["notify_on_close"].(bool)
	items, ok := m["blocks"].([]any)
	if !ok {
		c.bad("/view", "missing required field: blocks")
	}
	hasInput := false
	for i, item := range items {
		b, ok := item.(Block)
		if !ok {
			c.bad(fmt.Sprintf("/view/blocks/%d", i), "must be an object")
			continue
		}
		hasInput = hasInput || b["type"] == "input"
		v.Blocks = append(v.Blocks, b)
	}
	if hasInput && v.Submit == "" {
		c.bad("/view", "missing required field: submit")
	}
	c.why = append(c.why, checkBlocks("/view/blocks", v.Blocks, surfaceModal)...)
	if len(c.why) > 0 {
		return nil, rejected("invalid_arguments", c.why)
	}
	return v, nil
}
