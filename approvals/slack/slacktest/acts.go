package slacktest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Click presses a button of a message, confirming if it asks. The button is named
// by its action id, or by "block/action" where several share one. It is an error,
// and nothing is delivered, if the person is not in the channel or the message as
// it is now (see [Version]) has no such button. Whether the app took notice is in
// the Delivery.
func (s *Server) Click(user, channel, ts, action string, options ...Option) (*Delivery, error) {
	o := gather(options)
	s.mu.Lock()
	payload, err := s.clickPayload(user, channel, ts, action, o.version)
	s.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("clicking %s on %s in %s: %w", action, ts, channel, err)
	}
	return s.send(payload, o)
}

func (s *Server) clickPayload(user, channel, ts, action string, version int) (map[string]any, error) {
	c := s.channels[channel]
	if c == nil {
		return nil, fmt.Errorf("there is no such channel")
	}
	if !s.member(c, user) {
		return nil, fmt.Errorf("%s is not in it", user)
	}
	m := c.find(ts)
	if m == nil {
		return nil, fmt.Errorf("there is no such message")
	}
	shown := *m
	if version >= 0 {
		if version > len(m.Versions) {
			return nil, fmt.Errorf("there are only %d versions", len(m.Versions)+1)
		}
		if version < len(m.Versions) {
			shown.Content = m.Versions[version]
		}
	}
	e, block, err := element(shown.Blocks, action)
	if err != nil {
		return nil, err
	}
	acted, err := press(e, block, s.ts())
	if err != nil {
		return nil, err
	}
	container := answer{"type": "message", "message_ts": ts, "channel_id": channel, "is_ephemeral": false}
	if m.ThreadTS != "" {
		container["thread_ts"] = m.ThreadTS
	}
	name := c.Name
	if c.Private && c.im == "" {
		name = "privategroup"
	}
	payload := s.payload("block_actions", user)
	payload["container"] = container
	payload["channel"] = answer{"id": c.ID, "name": name}
	payload["message"] = s.messageJSON(c, &shown, false)
	payload["state"] = answer{"values": initial(shown.Blocks)}
	payload["response_url"] = fmt.Sprintf("%s/actions/%s/%d/%s", s.base, s.TeamID, s.serial, randomHex(12))
	payload["actions"] = []any{acted}
	return payload, nil
}

func press(e Block, block, ts string) (Block, error) {
	if e["type"] != "button" {
		return nil, fmt.Errorf("%v is no button", e["type"])
	}
	out := Block{"action_id": e["action_id"], "block_id": block, "text": e["text"], "type": "button", "action_ts": ts}
	for _, field := range []string{"value", "style", "url"} {
		if v, ok := e[field]; ok {
			out[field] = v
		}
	}
	return out, nil
}

// payload begins a payload of any kind, with a new trigger. The lock is held.
func (s *Server) payload(kind, user string) map[string]any {
	u := s.users[user]
	return map[string]any{
		"type": kind,
		"team": answer{"id": s.TeamID, "domain": teamDomain},
		"user": answer{"id": u.ID, "username": u.Name, "name": u.Name, "team_id": u.TeamID},
		// Slack still sends the old verification token, which proves nothing.
		"token":                 "deprecated",
		"api_app_id":            s.AppID,
		"enterprise":            nil,
		"is_enterprise_install": false,
		"trigger_id":            s.trigger(user),
	}
}

// ViewClick presses a button within the modal that the person has in front.
func (s *Server) ViewClick(user, view, action string, options ...Option) (*Delivery, error) {
	s.mu.Lock()
	payload, err := s.viewClickPayload(user, view, action)
	s.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("clicking %s in view %s: %w", action, view, err)
	}
	return s.send(payload, gather(options))
}

func (s *Server) viewClickPayload(user, view, action string) (map[string]any, error) {
	v, err := s.front(user, view)
	if err != nil {
		return nil, err
	}
	e, block, err := element(v.Blocks, action)
	if err != nil {
		return nil, err
	}
	acted, err := press(e, block, s.ts())
	if err != nil {
		return nil, err
	}
	state := initial(v.Blocks)
	payload := s.payload("block_actions", user)
	payload["container"] = answer{"type": "view", "view_id": v.ID}
	payload["view"] = s.viewJSON(v, state)
	payload["state"] = answer{"values": state}
	payload["actions"] = []any{acted}
	return payload, nil
}

// front returns the view if it is in front of the person. The lock is held.
func (s *Server) front(user, view string) (*View, error) {
	stack := s.stacks[user]
	if len(stack) == 0 {
		return nil, fmt.Errorf("%s has no modal open", user)
	}
	v := stack[len(stack)-1]
	if v.ID != view {
		return nil, fmt.Errorf("%s has %s in front", user, v.ID)
	}
	return v, nil
}

// Submit sends the form in front of a person. The values of its inputs are by
// action id or "block/action"; of a choice it is the option's value, of several
// their values with commas between. Inputs not named keep their initial values. It
// is an error, and nothing is delivered, if there is no such input or Slack's client
// would not send the form, because a field is empty, too short or too long.
//
// The modal then does what the acknowledgement says: it closes, shows errors,
// or becomes another; with no acknowledgement it stays.
func (s *Server) Submit(user, view string, values map[string]string, options ...Option) (*Delivery, error) {
	s.mu.Lock()
	payload, err := s.submitPayload(user, view, values)
	s.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("submitting view %s: %w", view, err)
	}
	d, err := s.send(payload, gather(options))
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.Acked {
		d.Saw = s.answered(user, view, d.Body)
		s.wake()
	}
	return d, nil
}

func (s *Server) submitPayload(user, view string, values map[string]string) (map[string]any, error) {
	v, err := s.front(user, view)
	if err != nil {
		return nil, err
	}
	if v.Submit == "" {
		return nil, fmt.Errorf("it has no button to submit it")
	}
	state, err := fill(v.Blocks, values)
	if err != nil {
		return nil, err
	}
	payload := s.payload("view_submission", user)
	payload["view"] = s.viewJSON(v, state)
	payload["response_urls"] = []any{}
	return payload, nil
}

// answered does to a modal what the app's answer to its submission says, and
// returns what the person is shown of it. The lock is held.
func (s *Server) answered(user, view string, body json.RawMessage) string {
	const trouble = "We had some trouble connecting. Try again?"
	stack := s.stacks[user]
	i := slices.IndexFunc(stack, func(v *View) bool { return v.ID == view })
	if i < 0 {
		return "" // closed meanwhile
	}
	var a struct {
		Action string            `json:"response_action"`
		Errors map[string]string `json:"errors"`
		View   json.RawMessage   `json:"view"`
	}
	if len(body) > 0 && json.Unmarshal(body, &a) != nil {
		return trouble
	}
	switch a.Action {
	case "":
		s.stacks[user] = slices.Delete(stack, i, len(stack))
	case "clear":
		delete(s.stacks, user)
	case "errors":
		var said []string
		for block, e := range a.Errors {
			if !slices.ContainsFunc(stack[i].Blocks, func(b Block) bool { return b["block_id"] == block && b["type"] == "input" }) {
				return trouble
			}
			said = append(said, block+": "+e)
		}
		if len(said) == 0 {
			return trouble
		}
		copied := *stack[i] // readers have the old one
		copied.Errors = a.Errors
		stack[i] = &copied
		slices.Sort(said)
		return strings.Join(said, "\n")
	case "update", "push":
		var replaced *View
		if a.Action == "update" {
			replaced = stack[i]
		}
		v, wrong := s.readView(args{"view": string(a.View)}, replaced)
		switch {
		case wrong != nil || a.Action == "push" && len(stack) == 3:
			return trouble
		case a.Action == "update":
			s.replace(stack, i, v)
		default:
			s.show(user, v, stack)
		}
	default:
		return trouble
	}
	return ""
}

// Dismiss closes the modal in front of a person, and all beneath it if it says so.
// The app is told if it asked for that, or else the Delivery is nil.
func (s *Server) Dismiss(user, view string, options ...Option) (*Delivery, error) {
	s.mu.Lock()
	v, err := s.front(user, view)
	if err != nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("closing view %s: %w", view, err)
	}
	if stack := s.stacks[user]; v.clearOnClose {
		delete(s.stacks, user)
	} else {
		s.stacks[user] = stack[:len(stack)-1]
	}
	payload := s.payload("view_closed", user)
	delete(payload, "trigger_id")
	payload["view"] = s.viewJSON(v, initial(v.Blocks))
	payload["is_cleared"] = v.clearOnClose
	s.wake()
	s.mu.Unlock()
	if !v.notifyOnClose {
		return nil, nil
	}
	return s.send(payload, gather(options))
}

// initial is the state of inputs that nobody has touched.
func initial(blocks []Block) map[string]any {
	state, _ := read(blocks, nil, false)
	return state
}

// fill is the state of inputs with values typed into them.
func fill(blocks []Block, values map[string]string) (map[string]any, error) {
	left := map[string]string{}
	for k, v := range values {
		left[k] = v
	}
	state, err := read(blocks, left, true)
	if err != nil {
		return nil, err
	}
	for k := range left {
		return nil, fmt.Errorf("there is no input %q", k)
	}
	return state, nil
}

// read makes the state of inputs, taking what it uses from values. Only a complete
// form is checked as Slack's client checks it.
func read(blocks []Block, values map[string]string, complete bool) (map[string]any, error) {
	state := map[string]any{}
	for _, b := range blocks {
		e, ok := b["element"].(Block)
		if b["type"] != "input" || !ok {
			continue
		}
		block, _ := b["block_id"].(string)
		action, _ := e["action_id"].(string)
		kind, _ := e["type"].(string)
		typed, given := "", false
		for _, k := range []string{action, block + "/" + action} {
			if v, ok := values[k]; ok {
				typed, given = v, true
				delete(values, k)
			}
		}
		entry := Block{"type": kind}
		empty := true
		switch kind {
		case "plain_text_input":
			if !given {
				typed, _ = e["initial_value"].(string)
			}
			least, _ := e["min_length"].(float64)
			most, ok := e["max_length"].(float64)
			if !ok {
				most = maxText
			}
			if n := length(typed); complete && n > 0 && (n < int(least) || n > int(most)) {
				return nil, fmt.Errorf("%d characters in %q: it takes %v to %v", n, action, least, most)
			}
			entry["value"] = nil // as Slack has it when nothing is typed
			if typed != "" {
				entry["value"], empty = typed, false
			}
		case "static_select", "radio_buttons":
			chosen := e["initial_option"]
			if given {
				chosen = option(e, typed)
				if chosen == nil && typed != "" {
					return nil, fmt.Errorf("there is no option %q in %q", typed, action)
				}
			}
			entry["selected_option"], empty = chosen, chosen == nil
		case "checkboxes", "multi_static_select":
			chosen, _ := e["initial_options"].([]any)
			if given {
				chosen = []any{}
				for v := range strings.SplitSeq(typed, ",") {
					if v == "" {
						continue
					}
					o := option(e, v)
					if o == nil {
						return nil, fmt.Errorf("there is no option %q in %q", v, action)
					}
					chosen = append(chosen, o)
				}
			}
			if chosen == nil {
				chosen = []any{}
			}
			entry["selected_options"], empty = chosen, len(chosen) == 0
		default:
			return nil, fmt.Errorf("this double cannot fill in a %s", kind)
		}
		if optional, _ := b["optional"].(bool); complete && empty && !optional {
			return nil, fmt.Errorf("%q is empty and required", action)
		}
		entries, _ := state[block].(map[string]any)
		if entries == nil {
			entries = map[string]any{}
			state[block] = entries
		}
		entries[action] = entry
	}
	return state, nil
}

func option(e Block, value string) any {
	items, _ := e["options"].([]any)
	for _, o := range items {
		if m, ok := o.(Block); ok && m["value"] == value {
			return o
		}
	}
	return nil
}

// Latest returns the newest message of a channel, replies among them, waiting for
// the first as long as it takes until the time is up.
func (s *Server) Latest(channel string, wait time.Duration) (Message, bool) {
	var m Message
	ok := s.Await(wait, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		c := s.channels[channel]
		if c == nil || len(c.messages) == 0 {
			return false
		}
		m = *c.messages[len(c.messages)-1]
		m.Versions = slices.Clone(m.Versions)
		return true
	})
	return m, ok
}
