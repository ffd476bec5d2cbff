package slacktest

import (
	"encoding/json"
	"slices"
	"strings"
)

// Content is what a message says.
type Content struct {
	Text     string          `json:"text"` // shown where blocks are not, as in notifications
	Blocks   []Block         `json:"blocks,omitempty"`
	Metadata json.RawMessage `json:"metadata,omitempty"`
}

// Message is a message in a channel as it is now.
type Message struct {
	Channel   string `json:"channel"`
	TS        string `json:"ts"`
	ThreadTS  string `json:"thread_ts,omitempty"` // of the first message, in a reply
	User      string `json:"user"`
	Broadcast bool   `json:"broadcast,omitempty"` // a reply shown in the channel too
	Content
	Edits    int       `json:"edits"`
	Versions []Content `json:"versions,omitempty"` // what it said before each edit, oldest first
	Replies  []Message `json:"replies,omitempty"`

	edited string
}

// Rendered is the message as a person sees it; see [Text].
func (m Message) Rendered() string { return render(m.Content) }

func render(c Content) string {
	if len(c.Blocks) == 0 {
		return mrkdwn(c.Text) + "\n"
	}
	return Text(c.Blocks)
}

// Ephemeral is a message that one person sees and the channel does not.
type Ephemeral struct {
	User     string  `json:"user"`
	TS       string  `json:"ts"`
	ThreadTS string  `json:"thread_ts,omitempty"`
	Text     string  `json:"text"`
	Blocks   []Block `json:"blocks,omitempty"`
}

// Rendered is the message as the person sees it; see [Text].
func (e Ephemeral) Rendered() string { return render(Content{Text: e.Text, Blocks: e.Blocks}) }

// View is a modal that is open for a person.
type View struct {
	ID              string  `json:"id"`
	User            string  `json:"user"`
	CallbackID      string  `json:"callback_id"`
	ExternalID      string  `json:"external_id,omitempty"`
	Title           string  `json:"title"`
	Submit          string  `json:"submit,omitempty"` // text of the button; none if empty
	Close           string  `json:"close,omitempty"`
	Blocks          []Block `json:"blocks"`
	PrivateMetadata string  `json:"private_metadata,omitempty"`
	Hash            string  `json:"hash"`
	// Errors are what the last submission was answered with, by block id.
	Errors map[string]string `json:"errors,omitempty"`

	clearOnClose, notifyOnClose bool
	root, previous              string
}

// Rendered is the modal as the person sees it, with the errors below their fields;
// see [Text].
func (v View) Rendered() string {
	out := "== " + v.Title + " ==\n"
	for _, b := range v.Blocks {
		out += Text([]Block{b})
		id, _ := b["block_id"].(string)
		if e := v.Errors[id]; e != "" {
			out += "! " + e + "\n"
		}
	}
	closing := v.Close
	if closing == "" {
		closing = "Cancel"
	}
	out += "[" + closing + "]"
	if v.Submit != "" {
		out += " [" + v.Submit + "]"
	}
	return out + "\n"
}

// Messages returns a channel's messages, oldest first, replies within the message
// that they answer.
func (s *Server) Messages(channel string) []Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.channels[channel]
	if c == nil {
		return nil
	}
	return c.threads()
}

func (c *channel) threads() []Message {
	var out []Message
	at := map[string]int{}
	for _, m := range c.messages {
		copied := *m
		copied.Versions = slices.Clone(m.Versions)
		if i, ok := at[m.ThreadTS]; ok {
			out[i].Replies = append(out[i].Replies, copied)
			continue
		}
		at[m.TS] = len(out)
		out = append(out, copied)
	}
	return out
}

// DMs returns the direct messages between the app and a person, as Messages does.
func (s *Server) DMs(user string) []Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.im(user).threads()
}

// Ephemerals returns what only this person saw in a channel, oldest first.
func (s *Server) Ephemerals(channel, user string) []Ephemeral {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.channels[channel]
	if c == nil {
		return nil
	}
	var out []Ephemeral
	for _, e := range c.ephemerals {
		if e.User == user {
			out = append(out, e)
		}
	}
	return out
}

// View returns the modal that a person has in front, if there is one.
func (s *Server) View(user string) (View, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stack := s.stacks[user]
	if len(stack) == 0 {
		return View{}, false
	}
	return *stack[len(stack)-1], true
}

// Post writes a message as a person, in the channel or in answer to threadTS, and
// returns its timestamp. The app is not told.
func (s *Server) Post(user, channel, threadTS, text string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.channels[channel]
	if c == nil {
		return ""
	}
	m := &Message{Channel: channel, TS: s.ts(), ThreadTS: threadTS, User: user, Content: Content{Text: text}}
	s.put(c, m)
	return m.TS
}

// Delete deletes a message, as an administrator may. The app is not told.
func (s *Server) Delete(channel, ts string) {
	s.change(func() {
		if c := s.channels[channel]; c != nil {
			c.messages = slices.DeleteFunc(c.messages, func(m *Message) bool { return m.TS == ts })
		}
	})
}

// ExpireTriggers ends the life of every trigger id issued so far, without the
// three seconds' wait.
func (s *Server) ExpireTriggers() {
	s.change(func() {
		for _, t := range s.triggers {
			t.issued = t.issued.Add(-triggerLife)
		}
	})
}

// keep remembers what the message says before an edit.
func (m *Message) keep() {
	if len(m.Versions) == maxVersions {
		m.Versions = slices.Delete(m.Versions, 0, 1)
	}
	m.Versions = append(m.Versions, m.Content)
}

// set changes the parts of a message that are given, and leaves the others as
// they were, as Slack does. The lock is held.
func (m *Message) set(s *Server, text *string, blocks []Block, metadata json.RawMessage) {
	if text != nil {
		m.Text = *text
	}
	if blocks != nil {
		if m.Blocks = s.rendered(blocks); len(blocks) == 0 {
			m.Blocks = nil
		}
	}
	if metadata != nil {
		if m.Metadata = metadata; strings.TrimSpace(string(metadata)) == "{}" {
			m.Metadata = nil
		}
	}
}
