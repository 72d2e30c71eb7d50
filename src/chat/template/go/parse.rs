//! Tokens to a tree. What Go refuses when it parses is refused here: unknown functions, undefined variables, unclosed blocks.

use std::collections::BTreeMap;

use super::Fault;
use super::functions;
use super::lex::{Kind, Piece, Token, pieces};

/// Blocks, parentheses and `else if` nest at most this deep: the walk over the tree uses the stack.
const MAX_DEPTH: usize = 100;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Text(String),
    Action(Pipe),
    If { condition: Pipe, then: Vec<Node>, otherwise: Vec<Node> },
    With { subject: Pipe, then: Vec<Node>, otherwise: Vec<Node> },
    Range { over: Pipe, each: Vec<Node>, otherwise: Vec<Node> },
    Template { name: String, argument: Option<Pipe>, line: usize },
    Break,
    Continue,
}

/// `$a, $b := command | command`
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pipe {
    pub(super) variables: Vec<String>,
    /// `=` instead of `:=`.
    pub(super) assigns: bool,
    /// Each with its operands, at least one.
    pub(super) commands: Vec<Vec<Operand>>,
    pub(super) line: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operand {
    Dot,
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Function(String),
    /// The fields follow.
    Variable(String, Vec<String>),
    Field(Vec<String>),
    /// `(pipeline).A.B`
    Group(Box<Pipe>, Vec<String>),
}

/// A parsed template: its own nodes, and those that it defines under names.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree {
    pub(super) root: Vec<Node>,
    pub(super) defined: BTreeMap<String, Vec<Node>>,
}

pub(super) fn parse(source: &str) -> Result<Tree, Fault> {
    let mut parser = Parser {
        pieces: pieces(source)?.into_iter(),
        defined: BTreeMap::new(),
        variables: vec!["$".to_owned()],
        loops: 0,
        depth: 0,
    };
    let (root, end) = parser.nodes()?;
    match end {
        Stop::Source => Ok(Tree { root, defined: parser.defined }),
        Stop::Else(_, line) => Err(Fault::at(line, "`else` without `if`")),
        Stop::End(line) => Err(Fault::at(line, "`end` without a block")),
    }
}

/// What stopped a list of nodes.
enum Stop {
    Source,
    End(usize),
    /// The rest of the `else` action.
    Else(Vec<Token>, usize),
}

struct Parser<'a> {
    pieces: std::vec::IntoIter<Piece<'a>>,
    defined: BTreeMap<String, Vec<Node>>,
    /// Visible here, the innermost last.
    variables: Vec<String>,
    /// `range`s around this place.
    loops: usize,
    depth: usize,
}

impl Parser<'_> {
    fn nodes(&mut self) -> Result<(Vec<Node>, Stop), Fault> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let tokens = match piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text.to_owned()));
                    continue;
                }
                Piece::Action(tokens) => tokens,
            };
            let Some(first) = tokens.first() else {
                return Err(Fault::new("an action is empty"));
            };
            let line = first.line;
            let Kind::Word(word) = &first.kind else {
                nodes.push(Node::Action(self.whole_pipe(&tokens)?));
                continue;
            };
            let rest = &tokens[1..];
            match word.as_str() {
                "if" | "with" | "range" => nodes.push(self.block(word, rest, line)?),
                "end" if rest.is_empty() => return Ok((nodes, Stop::End(line))),
                "else" => return Ok((nodes, Stop::Else(rest.to_vec(), line))),
                "break" | "continue" if rest.is_empty() => {
                    if self.loops == 0 {
                        return Err(Fault::at(line, format!("`{word}` outside of `range`")));
                    }
                    nodes.push(if word == "break" { Node::Break } else { Node::Continue });
                }
                "define" => {
                    let (name, rest) = named(rest, line)?;
                    if !rest.is_empty() {
                        return Err(Fault::at(line, "`define` takes a name and nothing else"));
                    }
                    self.define(name, line)?;
                }
                "template" => {
                    let (name, rest) = named(rest, line)?;
                    let argument = if rest.is_empty() { None } else { Some(self.whole_pipe(rest)?) };
                    nodes.push(Node::Template { name, argument, line });
                }
                "block" => {
                    let (name, rest) = named(rest, line)?;
                    let argument = self.whole_pipe(rest)?;
                    self.define(name.clone(), line)?;
                    nodes.push(Node::Template { name, argument: Some(argument), line });
                }
                _ => nodes.push(Node::Action(self.whole_pipe(&tokens)?)),
            }
        }
        Ok((nodes, Stop::Source))
    }

    /// The body of `define` or `block`, which sees none of the variables around it.
    fn define(&mut self, name: String, line: usize) -> Result<(), Fault> {
        let outside = std::mem::replace(&mut self.variables, vec!["$".to_owned()]);
        let loops = std::mem::take(&mut self.loops);
        let body = self.deeper(line, Self::nodes)?;
        self.variables = outside;
        self.loops = loops;
        match body {
            (nodes, Stop::End(_)) => {
                self.defined.insert(name, nodes);
                Ok(())
            }
            (_, Stop::Else(_, line)) => Err(Fault::at(line, "`else` in a definition")),
            (_, Stop::Source) => Err(Fault::at(line, "a definition has no `end`")),
        }
    }

    /// `if`, `with` or `range` from behind the word to its `end`.
    fn block(&mut self, word: &str, tokens: &[Token], line: usize) -> Result<Node, Fault> {
        self.deeper(line, |parser| {
            let visible = parser.variables.len();
            let pipe = parser.pipe(&mut Tokens { tokens, at: 0, line }, word == "range", true)?;
            parser.loops += usize::from(word == "range");
            let inner = parser.variables.len();
            let (then, end) = parser.nodes()?;
            parser.variables.truncate(inner);
            parser.loops -= usize::from(word == "range");
            let otherwise = match end {
                Stop::End(_) => Vec::new(),
                Stop::Source => return Err(Fault::at(line, format!("`{word}` has no `end`"))),
                Stop::Else(tokens, line) => parser.otherwise(word, &tokens, line)?,
            };
            parser.variables.truncate(visible);
            Ok(match word {
                "if" => Node::If { condition: pipe, then, otherwise },
                "with" => Node::With { subject: pipe, then, otherwise },
                _ => Node::Range { over: pipe, each: then, otherwise },
            })
        })
    }

    /// What follows `else`: nodes up to `end`, or one more block that shares it.
    fn otherwise(&mut self, of: &str, tokens: &[Token], line: usize) -> Result<Vec<Node>, Fault> {
        match tokens.first().map(|token| &token.kind) {
            None => match self.nodes()? {
                (nodes, Stop::End(_)) => Ok(nodes),
                (_, Stop::Else(_, line)) => Err(Fault::at(line, "a second `else`")),
                (_, Stop::Source) => Err(Fault::at(line, "`else` has no `end`")),
            },
            Some(Kind::Word(word)) if word == of && of != "range" => Ok(vec![self.block(of, &tokens[1..], line)?]),
            Some(_) => Err(Fault::at(line, "unexpected words behind `else`")),
        }
    }

    fn deeper<T>(&mut self, line: usize, inside: impl FnOnce(&mut Self) -> Result<T, Fault>) -> Result<T, Fault> {
        if self.depth == MAX_DEPTH {
            return Err(Fault::at(line, format!("more than {MAX_DEPTH} levels")));
        }
        self.depth += 1;
        let made = inside(self);
        self.depth -= 1;
        made
    }

    fn whole_pipe(&mut self, tokens: &[Token]) -> Result<Pipe, Fault> {
        let line = tokens.first().map_or(0, |token| token.line);
        self.pipe(&mut Tokens { tokens, at: 0, line }, false, true)
    }

    /// A pipeline up to the end of the tokens, or up to a closing parenthesis.
    fn pipe(&mut self, tokens: &mut Tokens<'_>, in_range: bool, whole: bool) -> Result<Pipe, Fault> {
        let line = tokens.line();
        let (variables, assigns) = self.declaration(tokens, in_range)?;
        let mut commands = Vec::new();
        loop {
            let command = self.command(tokens)?;
            if command.is_empty() {
                return Err(Fault::at(tokens.line(), "a command is missing"));
            }
            if !commands.is_empty()
                && !matches!(command[0], Operand::Function(_) | Operand::Field(_) | Operand::Variable(..))
            {
                return Err(Fault::at(tokens.line(), "something that is no function stands behind `|`"));
            }
            commands.push(command);
            match tokens.next().map(|token| &token.kind) {
                Some(Kind::Pipe) => {}
                None if whole => break,
                Some(Kind::Close) if !whole => break,
                None => return Err(Fault::at(tokens.line(), "a parenthesis is not closed")),
                Some(_) => return Err(Fault::at(tokens.line(), "unexpected words in an action")),
            }
        }
        if !assigns {
            self.variables.extend(variables.iter().cloned());
        }
        Ok(Pipe { variables, assigns, commands, line })
    }

    /// `$x :=`, `$x =`, and in `range` also `$i, $x :=`.
    fn declaration(&self, tokens: &mut Tokens<'_>, in_range: bool) -> Result<(Vec<String>, bool), Fault> {
        let kind = |at: usize| tokens.tokens.get(tokens.at + at).map(|token| &token.kind);
        let (names, taken) = match (kind(0), kind(1), kind(2)) {
            (Some(Kind::Variable(a)), Some(Kind::Comma), Some(Kind::Variable(b))) if in_range => {
                (vec![a.clone(), b.clone()], 3)
            }
            (Some(Kind::Variable(a)), ..) => (vec![a.clone()], 1),
            _ => return Ok((Vec::new(), false)),
        };
        let assigns = match kind(taken) {
            Some(Kind::Declare) => false,
            Some(Kind::Assign) => true,
            _ => return Ok((Vec::new(), false)),
        };
        if let Some(unknown) = names.iter().find(|name| assigns && !self.variables.contains(name)) {
            return Err(Fault::at(tokens.line(), format!("undefined variable `{unknown}`")));
        }
        tokens.at += taken + 1;
        Ok((names, assigns))
    }

    fn command(&mut self, tokens: &mut Tokens<'_>) -> Result<Vec<Operand>, Fault> {
        let mut operands = Vec::new();
        while let Some(token) = tokens.peek() {
            if matches!(token.kind, Kind::Pipe | Kind::Close) {
                break;
            }
            if !operands.is_empty() && !token.spaced {
                return Err(Fault::at(token.line, "operands must be separated by spaces"));
            }
            operands.push(self.operand(tokens)?);
        }
        Ok(operands)
    }

    fn operand(&mut self, tokens: &mut Tokens<'_>) -> Result<Operand, Fault> {
        let token = tokens.next().expect("the caller has seen it");
        let line = token.line;
        let fault = |text: String| Err(Fault::at(line, text));
        Ok(match token.kind.clone() {
            Kind::Dot => Operand::Dot,
            Kind::Text(text) => Operand::Text(text),
            Kind::Int(int) => Operand::Int(int),
            Kind::Float(float) => Operand::Float(float),
            Kind::Word(word) => match word.as_str() {
                "true" => Operand::Bool(true),
                "false" => Operand::Bool(false),
                "nil" => Operand::Nil,
                name if functions::exists(name) => Operand::Function(word),
                _ => return fault(format!("function `{word}` is not defined")),
            },
            Kind::Field(name) => {
                let mut names = vec![name];
                names.extend(tokens.fields());
                Operand::Field(names)
            }
            Kind::Variable(name) => {
                if !self.variables.contains(&name) {
                    return fault(format!("undefined variable `{name}`"));
                }
                Operand::Variable(name, tokens.fields())
            }
            Kind::Open => {
                let pipe = self.deeper(line, |parser| {
                    let visible = parser.variables.len();
                    let pipe = parser.pipe(tokens, false, false);
                    parser.variables.truncate(visible);
                    pipe
                })?;
                Operand::Group(Box::new(pipe), tokens.fields())
            }
            Kind::Pipe | Kind::Close | Kind::Comma | Kind::Declare | Kind::Assign => {
                return fault("unexpected sign in an action".to_owned());
            }
        })
    }
}

/// The name behind `template`, `define` and `block`, and the tokens behind it.
fn named(tokens: &[Token], line: usize) -> Result<(String, &[Token]), Fault> {
    match tokens.split_first() {
        Some((Token { kind: Kind::Text(name), .. }, rest)) => Ok((name.clone(), rest)),
        _ => Err(Fault::at(line, "a template's name must be a string")),
    }
}

struct Tokens<'a> {
    tokens: &'a [Token],
    at: usize,
    line: usize,
}

impl<'a> Tokens<'a> {
    fn peek(&self) -> Option<&'a Token> {
        self.tokens.get(self.at)
    }

    fn next(&mut self) -> Option<&'a Token> {
        let token = self.peek()?;
        self.at += 1;
        Some(token)
    }

    /// Field names that follow without a space.
    fn fields(&mut self) -> Vec<String> {
        let mut names = Vec::new();
        while let Some(Token { kind: Kind::Field(name), spaced: false, .. }) = self.peek() {
            names.push(name.clone());
            self.at += 1;
        }
        names
    }

    fn line(&self) -> usize {
        self.peek().or_else(|| self.tokens.last()).map_or(self.line, |token| token.line)
    }
}

impl Tree {
    /// Whether a field of this name is read anywhere.
    pub(super) fn reads(&self, field: &str) -> bool {
        let lists = std::iter::once(&self.root).chain(self.defined.values());
        lists.flatten().any(|node| node.any(&mut |operand| operand.reads(field)))
    }

    /// Whether this text is a string in an action anywhere.
    pub(super) fn says(&self, text: &str) -> bool {
        let lists = std::iter::once(&self.root).chain(self.defined.values());
        lists.flatten().any(|node| node.any(&mut |operand| matches!(operand, Operand::Text(found) if found == text)))
    }

    /// What stands around the reasoning of earlier answers: the first and the last text of the block that prints `.Thinking`.
    pub(super) fn around_thinking(&self) -> Option<(&str, &str)> {
        let block = innermost(
            &self.root,
            &mut |node| matches!(node, Node::Action(pipe) if pipe.any(&mut |operand| operand.reads("Thinking"))),
        )?;
        // Only inside a loop over messages is it earlier reasoning, so the block is not the whole template.
        let (Some(Node::Text(first)), Some(Node::Text(last))) = (block.first(), block.last()) else { return None };
        let found = !std::ptr::eq(block, &self.root[..]) && block.len() > 1;
        let (first, last) = (first.trim(), last.trim());
        (found && !first.is_empty() && !last.is_empty()).then_some((first, last))
    }

    /// What stands before the calls of earlier answers: the first text of the block for `.ToolCalls`, up to a brace.
    pub(super) fn before_tool_calls(&self) -> Option<&str> {
        let lists = std::iter::once(&self.root).chain(self.defined.values());
        let block = lists.into_iter().find_map(|nodes| of_tool_calls(nodes))?;
        let text = first_text(block)?;
        Some(text.split('{').next().unwrap_or_default().trim()).filter(|text| !text.is_empty())
    }

    /// Without everything that stands behind the first action which prints `.Response`: the model goes on from there.
    pub(super) fn up_to_response(&self) -> Tree {
        let mut root = self.root.clone();
        cut(&mut root);
        Tree { root, defined: self.defined.clone() }
    }
}

/// The innermost list that has such a node itself.
fn innermost<'a>(nodes: &'a [Node], is: &mut impl FnMut(&Node) -> bool) -> Option<&'a [Node]> {
    if nodes.iter().any(&mut *is) {
        return Some(nodes);
    }
    nodes.iter().flat_map(Node::lists).find_map(|list| innermost(list, is))
}

/// The nodes under an `if` or `range` that is about `.ToolCalls`.
fn of_tool_calls(nodes: &[Node]) -> Option<&[Node]> {
    nodes.iter().find_map(|node| match node {
        Node::If { condition: pipe, then, .. } | Node::Range { over: pipe, each: then, .. }
            if pipe.any(&mut |operand| operand.reads("ToolCalls")) =>
        {
            Some(&then[..])
        }
        node => node.lists().into_iter().find_map(|list| of_tool_calls(list)),
    })
}

/// The first text in reading order that is not blank.
fn first_text(nodes: &[Node]) -> Option<&str> {
    nodes.iter().find_map(|node| match node {
        Node::Text(text) if !text.trim().is_empty() => Some(text.as_str()),
        node => node.lists().into_iter().find_map(|list| first_text(list)),
    })
}

/// Cuts behind `.Response`; whether it was there.
fn cut(nodes: &mut Vec<Node>) -> bool {
    for at in 0..nodes.len() {
        let found = match &mut nodes[at] {
            Node::Action(pipe) => pipe.any(&mut |operand| operand.reads("Response")),
            Node::If { then, otherwise, .. }
            | Node::With { then, otherwise, .. }
            | Node::Range { each: then, otherwise, .. } => {
                if cut(then) {
                    otherwise.clear();
                    true
                } else {
                    cut(otherwise)
                }
            }
            Node::Text(_) | Node::Template { .. } | Node::Break | Node::Continue => false,
        };
        if found {
            nodes.truncate(at + 1);
            return true;
        }
    }
    false
}

impl Node {
    /// The lists of a block.
    fn lists(&self) -> Vec<&[Node]> {
        match self {
            Node::If { then, otherwise, .. }
            | Node::With { then, otherwise, .. }
            | Node::Range { each: then, otherwise, .. } => vec![then, otherwise],
            Node::Text(_) | Node::Action(_) | Node::Template { .. } | Node::Break | Node::Continue => Vec::new(),
        }
    }

    fn any(&self, is: &mut impl FnMut(&Operand) -> bool) -> bool {
        match self {
            Node::Text(_) | Node::Break | Node::Continue => false,
            Node::Action(pipe) => pipe.any(is),
            Node::Template { argument, .. } => argument.as_ref().is_some_and(|pipe| pipe.any(is)),
            Node::If { condition: pipe, then, otherwise }
            | Node::With { subject: pipe, then, otherwise }
            | Node::Range { over: pipe, each: then, otherwise } => {
                pipe.any(is) || then.iter().chain(otherwise).any(|node| node.any(is))
            }
        }
    }
}

impl Pipe {
    fn any(&self, is: &mut impl FnMut(&Operand) -> bool) -> bool {
        self.commands.iter().flatten().any(|operand| match operand {
            Operand::Group(pipe, _) => is(operand) || pipe.any(is),
            _ => is(operand),
        })
    }
}

impl Operand {
    fn reads(&self, field: &str) -> bool {
        match self {
            Operand::Field(names) | Operand::Variable(_, names) | Operand::Group(_, names) => {
                names.iter().any(|name| name == field)
            }
            _ => false,
        }
    }
}
